"""PASCAL VOC 2012, and SBD's annotations of its pictures, as they are distributed: where their files lie."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynroute.data import masks
from dynroute.data.images import SUFFIXES, list_folder
from dynroute.data.listing import Listing
from dynroute.data.source import DataError

NAME, SBD = "voc2012", "sbd"
_IMAGES, _MASKS, _MORE, _LISTS = "JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"
_RELEASES = ("benchmark_RELEASE/dataset", "VOCaug/dataset")
_AUGMENTED = "train_aug"
_WITHHELD = "test"


def _colours() -> np.ndarray:
    """uint8 [256,3]: the class's bits go to red, green and blue in turn, each filled from its highest bit down."""
    classes = np.arange(256)
    channels = [sum(((classes >> (3 * j + c)) & 1) << (7 - j) for j in range(8)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


COLOURS = _colours()
"""uint8 [256,3]: VOC's colour of each class; 255, the void, has (224, 224, 192)."""


def is_here(root: Path) -> bool:
    """Whether a folder, or the VOCdevkit or VOC2012 in it, looks like this layout, or like SBD's release."""
    return _home(root) is not None or _release(root) is not None


def wanted(root: Path, split: str = "<split>") -> str:
    """The layout, for messages."""
    return f"{root}/{_IMAGES}/*.jpg, {_MASKS}/*.png and {_LISTS}/{split}.txt (PASCAL VOC 2012 as it is distributed)"


def list_splits(root: Path) -> list[str]:
    """The lists that there are, without `trainval` beside its two parts. Raises DataError: there is none."""
    home, release = _home(root), _release(root)
    lists = release if home is None and release is not None else (home or root) / _LISTS
    found = sorted(path.stem for path in lists.glob("*.txt") if not path.name.startswith("."))
    if not found:
        raise DataError(f"{lists}: no list of pictures in it, wanted {wanted(home or root)}")
    return [name for name in found if name != "trainval" or not {"train", "val"} <= set(found)]


def list_split(root: Path, split: str) -> Listing:
    """The pairs that a list names: each line an id, or an image and its mask.

    The mask of an id is VOC's own, else that in `SegmentationClassAug`, else that in SBD's release. `train_aug`, where
    there is no such list, is VOC's training images and those that SBD has besides, without VOC's validation images.

    Raises:
        DataError: a folder or list is missing, or the list is empty or malformed.
    """
    home, release = _home(root), _release(root)
    if home is None and release is not None:
        listing = Listing(SBD, release / "cls", NAME, read=read_mask)
        lines = _lines(release / f"{split}.txt", f"{release}/img/*.jpg, cls/*.mat and {split}.txt (SBD's release)")
        return _listed(listing, lines, release, [release / "img"], [release / "cls"])
    home = home or root
    if not (home / _IMAGES).is_dir():
        raise DataError(f"{home / _IMAGES}: no such folder, wanted {wanted(home, split)}")
    listing = Listing(NAME, home / _MASKS, NAME, split == _WITHHELD, read_mask)
    images, own = [home / _IMAGES], [home / _MASKS, home / _MORE]
    lists = home / _LISTS
    if release is not None:
        images.append(release / "img")
        own.append(release / "cls")
    if not listing.withheld and not any(folder.is_dir() for folder in own):
        raise DataError(f"{home / _MASKS}: no such folder, wanted {wanted(home, split)}")
    if split == _AUGMENTED and release is not None and not (lists / f"{split}.txt").is_file():
        lines = _augmented(lists, release)
    else:
        hint = f"; or SBD's {_RELEASES[0]} beside it" if split == _AUGMENTED else ""
        lines = _lines(lists / f"{split}.txt", wanted(home, split) + hint)
    return _listed(listing, lines, home, images, own)


def read_mask(path: Path) -> np.ndarray:
    """The values that a mask stores, also as VOC's colours or in SBD's .mat files: uint8 or int32 [H,W].

    Raises:
        DataError: see `read_values`; or a .mat file without `GTcls.Segmentation`.
        ImportError: a .mat file, and no scipy.
    """
    return _read_mat(path) if path.suffix == ".mat" else masks.read_values(path, COLOURS)


def _home(root: Path) -> Path | None:
    places = (root, root / "VOC2012", root / "VOCdevkit/VOC2012")
    parts = (_IMAGES, _MASKS, _LISTS)
    return next((place for place in places if any((place / part).is_dir() for part in parts)), None)


def _release(root: Path) -> Path | None:
    """The `dataset` folder of SBD: the root itself, or in it, in VOC2012, in VOCdevkit, or beside that."""
    home = _home(root)
    above = (root,) if home is None else (home, home.parent, home.parent.parent)
    places = [root, root / "dataset", *(place / name for place in above for name in _RELEASES)]
    return next((place for place in places if (place / "img").is_dir() and (place / "cls").is_dir()), None)


def _lines(path: Path, layout: str) -> list[tuple[str, str]]:
    """The lines of a list that are not blank, each with the place it stands at."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, wanted {layout}")
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    found = [(f"{path}: line {number}", line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: empty, wanted an id to a line, or an image and its mask")
    return found


def _augmented(lists: Path, release: Path) -> list[tuple[str, str]]:
    """VOC's `train`, and what of SBD's two lists is in neither of VOC's."""
    layout = wanted(lists.parent.parent, "train") + f" and train.txt, val.txt in {release}"
    train, held_out = _lines(lists / "train.txt", layout), _lines(lists / "val.txt", layout)
    taken = {name for _, name in (*train, *held_out)}
    more = [line for part in ("train.txt", "val.txt") for line in _lines(release / part, layout)]
    return train + [(place, name) for place, name in more if name not in taken]


def _listed(
    listing: Listing, lines: Sequence[tuple[str, str]], home: Path, images: Sequence[Path], own: Sequence[Path]
) -> Listing:
    """Fill in the pairs of a list's lines, by id from these folders of images and of masks."""
    pictures = _by_stem(listing, images, SUFFIXES)
    stored = _by_stem(listing, own, (*masks.SUFFIXES, ".mat"))
    seen: set[str] = set()
    for place, line in lines:
        image, mask = _fields(place, line)
        stem = Path(image).stem if "/" in image else image
        if stem in seen:
            listing.faults.append(f"{place}: {stem} a second time, wanted each picture once")
            continue
        seen.add(stem)
        listing.images += 1
        picture = home / image.lstrip("/") if "/" in image else pictures.get(stem, images[0] / f"{stem}.jpg")
        label = home / mask.lstrip("/") if mask else stored.get(stem)
        if not picture.is_file():
            listing.faults.append(f"{picture}: no such image, wanted by {place}")
        elif label is not None and not label.is_file():
            listing.faults.append(f"{label}: no such mask, wanted by {place}")
        elif label is None and not listing.withheld:
            places = " or ".join(folder.name for folder in own if folder.is_dir())
            listing.faults.append(f"{own[0] / stem}.png: no such mask (nor in {places}), wanted by {place}")
        else:
            listing.pairs.append((picture, label))
    return listing


def _fields(place: str, line: str) -> tuple[str, str]:
    """An id or an image's path, and its mask's path if there is one."""
    image, *rest = line.split()
    if len(rest) > 1 or (rest and not ("/" in image and "/" in rest[0])):
        raise DataError(f"{place}: {line!r}, wanted an id, or an image and a mask (/{_IMAGES}/ID.jpg /{_MORE}/ID.png)")
    return image, rest[0] if rest else ""


def _by_stem(listing: Listing, folders: Sequence[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of these folders by stem, the first folder's before the others'."""
    found: dict[str, Path] = {}
    for folder in folders:
        if folder.is_dir():
            files, hidden, _ = list_folder(folder, suffixes)
            listing.hidden += hidden
            found = {**{path.stem: path for path in files}, **found}
    return found


def _read_mat(path: Path) -> np.ndarray:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise ImportError(f"{path}: scipy is wanted to read SBD's .mat files: pip install 'dynroute[sbd]'") from None
    content = io.BytesIO(path.read_bytes())
    try:
        values = loadmat(content, variable_names=["GTcls"], struct_as_record=False)["GTcls"][0, 0].Segmentation
    except Exception as error:  # a broken file ends the parser in whatever it happens to meet
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: wanted GTcls.Segmentation, as in SBD's release ({reason})") from None
    if values.ndim != 2 or values.dtype != np.uint8:
        raise DataError(f"{path}: GTcls.Segmentation is {values.dtype} {list(values.shape)}, wanted uint8 [H,W]")
    return values
