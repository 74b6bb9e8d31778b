"""Where a data set's files lie: its layout, splits, pairs of an image and its mask, and the names of the classes."""

from __future__ import annotations

from pathlib import Path

from dynroute.data import cityscapes, masks, shards, voc
from dynroute.data.images import SUFFIXES, list_folder
from dynroute.data.listing import Listing
from dynroute.data.source import IGNORE, DataError

_IMAGES, _MASKS = "images", "masks"
_OFFICIAL = {cityscapes.NAME: cityscapes, voc.NAME: voc}
LAYOUTS = ("folder", *_OFFICIAL, shards.NAME)


def find_layout(root: Path) -> str:
    """`folder`, or the official layout that a folder without `images/` looks like, whole or not; or `shards`."""
    if (root / _IMAGES).is_dir():
        return "folder"
    official = next((name for name, layout in _OFFICIAL.items() if layout.is_here(root)), None)
    return official or (shards.NAME if shards.is_shards(root) else "folder")


def list_split(root: Path, split: str, layout: str | None = None) -> Listing:
    """Pairs `root/images/<split>/*` beside `root/masks/<split>/*` by stem, or those of an official layout or of shards.

    Args:
        root: of the data set; a folder, of shards also a pattern.
        split: its name.
        layout: one of `LAYOUTS`; None: the one that is there.

    Raises:
        DataError: a folder or list is missing, or holds no image.
    """
    layout = layout or find_layout(root)
    if layout in _OFFICIAL:
        return _OFFICIAL[layout].list_split(root, split)
    if layout == shards.NAME:
        return shards.list_split(root, split)
    images, folder = root / _IMAGES / split, root / _MASKS / split
    for path in (root, images, folder):
        if not path.is_dir():
            raise DataError(f"{path}: no such folder, wanted {_wanted(root, split)}")
    pictures, hidden, others = list_folder(images)
    stored, hidden_masks, _ = list_folder(folder, masks.SUFFIXES)
    found = Listing("folder", folder, hidden=[*hidden, *hidden_masks], others=[*others])
    found.add(
        [(path.stem, path) for path in pictures],
        [(path.stem, path) for path in stored],
        lambda stem: folder / f"{stem}.png",
    )
    if not found.images:
        raise DataError(f"{images}: no image found, wanted files ending in {', '.join(SUFFIXES)}")
    return found


def list_splits(root: Path) -> list[str]:
    """The splits that a data set has, `train` first. Raises DataError."""
    layout = find_layout(root)
    if layout in _OFFICIAL:
        found = _OFFICIAL[layout].list_splits(root)
    elif layout == shards.NAME:
        found = shards.list_splits(root)
    else:
        images = root / _IMAGES
        if not images.is_dir():
            raise DataError(f"{images}: no such folder, wanted {_wanted(root)}")
        found = sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not found:
            raise DataError(f"{images}: no split in it, wanted a folder such as {images / 'train'}")
    return sorted(found, key=lambda name: name != "train")


def read_class_names(root: Path, most: int = IGNORE) -> list[str] | None:
    """The lines of `root/classes.txt`, at most so many; None where there is none. Raises DataError.

    Of a pattern of shards it is the folder before its first sign of a pattern.
    """
    path = shards.folder_of(root) / "classes.txt"
    if not path.is_file():
        return None
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}), wanted UTF-8") from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(names) <= most:
        raise DataError(f"{path}: {len(names)} class names found, wanted 1 to {most}, one a line")
    # an invisible letter is most often a file in another encoding
    odd = next((name for name in names if not name.replace("\t", " ").isprintable()), None)
    if odd is not None:
        raise DataError(f"{path}: {odd!r} holds an invisible character, wanted printable names in UTF-8")
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise DataError(f"{path}: {twice!r} names two classes, wanted a name of its own for each")
    return names


def _wanted(root: Path, split: str = "<split>") -> str:
    return (
        f"{root}/images/{split}/*.jpg and masks/{split}/*.png; or Cityscapes (leftImg8bit/, gtFine/) or PASCAL VOC "
        "2012 (JPEGImages/, SegmentationClass/, ImageSets/) as they are distributed"
    )
