"""Where a data set's files lie: pairs of an image and its mask, and the names of the classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dynroute.data import masks
from dynroute.data.images import SUFFIXES, list_folder
from dynroute.data.source import IGNORE, DataError

# Folders of images and of masks: our own, and the official ones of Cityscapes, with a folder for each city.
_OWN, _CITYSCAPES = ("images", "masks"), ("leftImg8bit", "gtFine")


@dataclass
class Listing:
    """The files of one split.

    Attributes:
        folder: of its masks.
        labels: the scheme that the layout itself implies.
        pairs: image and mask.
        images: how many there are, with and without a mask.
        faults: images that have no mask or share a stem, a line each.
        unpaired: masks that have no image.
        hidden: hidden files, such as operating systems leave, passed over.
        others: what else lies among the images and is none, passed over.
    """

    folder: Path
    labels: str | None
    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    images: int = 0
    faults: list[str] = field(default_factory=list)
    unpaired: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def list_split(root: Path, split: str) -> Listing:
    """Pairs `root/images/<split>/*` beside `root/masks/<split>/*` by stem, or those of Cityscapes' official layout.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    official = _is_official(root)
    images, folder = (root / part / split for part in (_CITYSCAPES if official else _OWN))
    for path in (root, images, folder):
        if not path.is_dir():
            raise DataError(f"{path}: no such folder, wanted {root}/images/{split}/*.jpg and masks/{split}/*.png")
    found = Listing(folder, "cityscapes" if official else None)
    for part in sorted(path for path in images.iterdir() if path.is_dir()) if official else [images]:
        _pair(found, part, folder / part.name if official else folder, official)
    if not found.images:
        raise DataError(f"{images}: no image found, wanted files ending in {', '.join(SUFFIXES)}")
    return found


def list_splits(root: Path) -> list[str]:
    """The splits that a data set has, `train` first. Raises DataError."""
    images = root / (_CITYSCAPES if _is_official(root) else _OWN)[0]
    if not images.is_dir():
        raise DataError(f"{images}: no such folder, wanted {root}/images/<split>/*.jpg and masks/<split>/*.png")
    found = sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not found:
        raise DataError(f"{images}: no split in it, wanted a folder such as {images / 'train'}")
    return sorted(found, key=lambda name: name != "train")


def read_class_names(root: Path) -> list[str] | None:
    """The lines of `root/classes.txt`; None where there is none. Raises DataError."""
    path = root / "classes.txt"
    if not path.is_file():
        return None
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}), wanted UTF-8") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(names) <= IGNORE:
        raise DataError(f"{path}: {len(names)} class names found, wanted 1 to {IGNORE}, one a line")
    # an invisible letter is most often a file in another encoding
    odd = next((name for name in names if not name.replace("\t", " ").isprintable()), None)
    if odd is not None:
        raise DataError(f"{path}: {odd!r} holds an invisible character, wanted printable names in UTF-8")
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise DataError(f"{path}: {twice!r} names two classes, wanted a name of its own for each")
    return names


def _is_official(root: Path) -> bool:
    return (root / _CITYSCAPES[0]).is_dir() and not (root / _OWN[0]).is_dir()


def _pair(found: Listing, images: Path, folder: Path, official: bool) -> None:
    """Add the pairs of one folder of images and one of masks."""
    pictures, hidden, others = list_folder(images)
    stored, hidden_masks, _ = list_folder(folder, masks.SUFFIXES) if folder.is_dir() else ([], [], [])
    found.hidden += [*hidden, *hidden_masks]
    found.others += others
    found.images += len(pictures)
    by_stem: dict[str, list[Path]] = {}
    for stem, path in _masks(stored, official):
        by_stem.setdefault(stem, []).append(path)
    seen: dict[str, Path] = {}
    for path in pictures:
        stem = path.stem.removesuffix("_leftImg8bit") if official else path.stem
        own = by_stem.pop(stem, [])
        if stem in seen:
            found.faults.append(f"{path}: two images share the stem of {seen[stem].name}, wanted one")
        elif not own:
            name = f"{stem}_gtFine_labelIds.png" if official else f"{stem}.png"
            found.faults.append(f"{folder / name}: no such mask, wanted one for the image {path}")
        elif len(own) > 1:
            found.faults.append(f"{own[1]}: two masks for the image {path}, the other is {own[0].name}, wanted one")
        else:
            found.pairs.append((path, own[0]))
        seen.setdefault(stem, path)
    found.unpaired += [path for paths in by_stem.values() for path in paths]


def _masks(stored: list[Path], official: bool) -> Iterator[tuple[str, Path]]:
    """Each mask with its image's stem; of the official files those of label ids, not those of instances or colours."""
    for path in stored:
        if not official:
            yield path.stem, path
        elif path.stem.endswith("_gtFine_labelIds"):
            yield path.stem.removesuffix("_gtFine_labelIds"), path
