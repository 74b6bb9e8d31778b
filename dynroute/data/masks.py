"""Masks in files: the values that are stored in them, and how many pixels of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dynroute.data.images import open_upright
from dynroute.data.parallel import in_threads
from dynroute.data.source import DataError, File

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# Pillow spreads grey values of two and four bits over 0..255; a label is the number that was stored.
_SPREAD = {"L;2": 85, "L;4": 17}
_LARGEST = 65535
# Pixels of each value, by file, time of its last change and size.
_counted: dict[tuple[Path, int, int], dict[int, int]] = {}


def read_values(path: File, colours: np.ndarray | None = None) -> np.ndarray:
    """The values that a mask stores, upright: uint8 or int32 [H,W].

    Grey of 1, 2, 4, 8 or 16 bits and palettes are the numbers in the file, a palette's colours are not looked at.
    Floats and 32-bit integers are taken where all of them are whole numbers of 16 bits.

    Args:
        colours: uint8 [256,3], that of each label: pictures in these colours are read by them, and so are palettes,
            whose order programs change when they save them again.

    Raises:
        DataError: see `open_upright`; or colours, a lossy format, a value that is no label; it names the file.
    """
    opened = open_upright(path)
    image, mode = opened.image, opened.image.mode
    if opened.format not in ("PNG", "TIFF", "BMP"):
        raise DataError(f"{path}: {opened.format}, which does not keep labels as they are; wanted PNG, TIFF or BMP")
    if colours is not None and mode in ("RGB", "RGBA", "P"):
        return _by_colour(path, image, colours)
    if mode in ("1", "L", "P"):
        if opened.stored.startswith(("1;", "L;")) and opened.stored.endswith("I"):
            raise DataError(f"{path}: a TIFF that counts from white to black, wanted 0 to be black")
        values = np.array(image, dtype=np.uint8)
        spread = _SPREAD.get(opened.stored[:3]) if mode == "L" else None
        return values if spread is None else values // np.uint8(spread)
    if not (mode.startswith("I;16") or mode in ("I", "F")):
        raise DataError(f"{path}: mode {mode}, a picture in colours; wanted a grey or palette PNG of class indices")
    values = np.asarray(image)
    wrong = values[~((np.rint(values) == values) & (values >= -1) & (values <= _LARGEST))]
    if wrong.size:
        raise DataError(f"{path}: value {wrong[0]:g} found, wanted class indices: whole numbers from 0 on")
    return values.astype(np.int32)


def _by_colour(path: File, image: Image.Image, colours: np.ndarray) -> np.ndarray:
    """Labels uint8 [H,W] by the pixels' colours; of a palette with others the stored indices."""
    known = _numbered(colours)
    order = np.argsort(known)
    if image.mode == "P":
        stored = np.array(image, dtype=np.uint8)
        palette = np.full((256, 3), -1)
        own = np.asarray(image.getpalette()).reshape(-1, 3)
        palette[: len(own)] = own
        used = np.unique(stored)
        seen = _numbered(palette[used])
    else:
        seen, place = np.unique(_numbered(np.asarray(image.convert("RGB"))), return_inverse=True)
    labels = order[np.searchsorted(known, seen, sorter=order).clip(max=len(known) - 1)]
    strange = seen[known[labels] != seen]
    if image.mode == "P":
        table = np.arange(256, dtype=np.uint8)
        if not strange.size:
            table[used] = labels
        return table[stored]
    if strange.size:
        rgb = tuple(int(strange[0]) >> shift & 255 for shift in (16, 8, 0))
        raise DataError(f"{path}: colour {rgb} found, wanted class indices, or the colours of the classes")
    return labels.astype(np.uint8)[place].reshape(image.height, image.width)


def _numbered(colours: np.ndarray) -> np.ndarray:
    """Colours [...,3] as numbers int64 [...]."""
    return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def count_values(values: np.ndarray) -> dict[int, int]:
    """Each value with the number of its pixels, in order."""
    if values.dtype == np.uint8:
        counts = np.bincount(values.ravel(), minlength=256)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    return {int(value): int(count) for value, count in zip(*np.unique(values, return_counts=True))}


@dataclass
class Tally:
    """What values the masks of a split store.

    Attributes:
        pixels: of each value.
        first: the first mask that each value was met in.
        of_mask: the values of each mask.
    """

    pixels: dict[int, int] = field(default_factory=dict)
    first: dict[int, File] = field(default_factory=dict)
    of_mask: dict[File, tuple[int, ...]] = field(default_factory=dict)

    def add(self, path: File, counts: dict[int, int]) -> None:
        """One mask more."""
        self.of_mask[path] = tuple(counts)
        for value, count in counts.items():
            self.pixels[value] = self.pixels.get(value, 0) + count
            self.first.setdefault(value, path)


def tally(
    paths: Sequence[Path],
    read: Callable[..., np.ndarray] = read_values,
    keep: dict[File, np.ndarray] | None = None,
) -> Tally:
    """Reads all these masks, in threads; one that did not change since it was last counted is not read again.

    Args:
        paths: of the masks.
        read: from a mask to its values [H,W].
        keep: the values of all of them go in here.

    Raises:
        DataError: the first that cannot be read, see `read_values`.
    """

    def count(path: Path) -> dict[int, int]:
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if keep is None and key in _counted:
            return _counted[key]
        values = read(path)
        if keep is not None:
            keep[path] = values
        _counted[key] = count_values(values)
        return _counted[key]

    found = Tally()
    for path, counts in zip(paths, in_threads(count, paths, "read masks")):
        found.add(path, counts)
    return found
