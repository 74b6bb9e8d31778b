"""Cityscapes as it is distributed: where its files lie."""

from __future__ import annotations

from pathlib import Path

from dynroute.data import masks
from dynroute.data.images import SUFFIXES, list_folder, say_once
from dynroute.data.listing import Listing
from dynroute.data.source import DataError

NAME = "cityscapes"
_IMAGES, _FINE, _COARSE = "leftImg8bit", "gtFine", "gtCoarse"
# What masks' names end in, and what their values are then; the first that a split has is taken.
_NUMBERINGS = {"labelIds": "cityscapes", "labelTrainIds": "cityscapes_train_ids"}
# Its annotations hold the borders of the pictures alone.
_WITHHELD = "test"


def is_here(root: Path) -> bool:
    """Whether a folder looks like this layout, whole or not."""
    return any((root / part).is_dir() for part in (_IMAGES, _FINE, _COARSE))


def wanted(root: Path, split: str = "<split>") -> str:
    """The layout, for messages."""
    return (
        f"{root}/{_IMAGES}/{split}/<city>/*_{_IMAGES}.png and {_FINE}/{split}/<city>/*_{_FINE}_labelIds.png "
        "(Cityscapes as it is distributed)"
    )


def list_splits(root: Path) -> list[str]:
    """The splits that there are images of. Raises DataError."""
    images = root / _IMAGES
    if not images.is_dir():
        raise DataError(f"{images}: no such folder, wanted {wanted(root)}")
    return _folders(images)


def list_split(root: Path, split: str) -> Listing:
    """Pairs by city and stem: label ids, or train ids where a split has none; coarse ones where it has no fine ones.

    Raises:
        DataError: a folder is missing or holds no image.
    """
    images = root / _IMAGES / split
    if not images.is_dir():
        raise DataError(f"{images}: no such folder, wanted {wanted(root, split)}")
    withheld = split == _WITHHELD
    kind = next((kind for kind in (_FINE, _COARSE) if (root / kind / split).is_dir()), _FINE)
    folder = root / kind / split
    if not folder.is_dir() and not withheld:
        raise DataError(f"{folder}: no such folder, wanted {wanted(root, split)}")
    if kind == _COARSE and split != "train_extra":
        say_once(f"{root / _FINE / split}: no such folder, the coarse labels in {folder} are taken")
    cities = {city: list_folder(images / city) for city in _folders(images)}
    stored = {city: list_folder(folder / city, masks.SUFFIXES) for city in cities if (folder / city).is_dir()}
    names = [path.stem for found in stored.values() for path in found.files]
    ending = next((end for end in _NUMBERINGS if any(name.endswith(f"_{end}") for name in names)), "labelIds")
    tail = f"_{kind}_{ending}"
    listing = Listing(NAME, folder, _NUMBERINGS[ending], withheld)
    for city, (pictures, hidden, others) in cities.items():
        own = stored.get(city)
        listing.hidden += [*hidden, *(own.hidden if own else ())]
        listing.others += others
        listing.add(
            [(path.stem.removesuffix(f"_{_IMAGES}"), path) for path in pictures],
            [(path.stem.removesuffix(tail), path) for path in (own.files if own else ()) if path.stem.endswith(tail)],
            lambda stem, city=city: folder / city / f"{stem}{tail}.png",  # type: ignore[misc]
        )
    if not listing.images:
        raise DataError(f"{images}: no image found, wanted {wanted(root, split)}, or {', '.join(SUFFIXES)}")
    return listing


def _folders(path: Path) -> list[str]:
    return sorted(part.name for part in path.iterdir() if part.is_dir() and not part.name.startswith("."))
