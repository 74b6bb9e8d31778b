"""Masks in files: the values that are stored in them, and how many pixels of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from dynroute.data.images import open_upright
from dynroute.data.source import DataError

SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# Pillow spreads grey values of two and four bits over 0..255; a label is the number that was stored.
_SPREAD = {"L;2": 85, "L;4": 17}
_LARGEST = 65535


def read_values(path: Path) -> np.ndarray:
    """The values that a mask stores, upright: uint8 or int32 [H,W].

    Grey of 1, 2, 4, 8 or 16 bits and palettes are the numbers in the file, a palette's colours are not looked at.
    Floats and 32-bit integers are taken where all of them are whole numbers of 16 bits.

    Raises:
        DataError: see `open_upright`; or colours, a lossy format, a value that is no label; it names the file.
    """
    opened = open_upright(path)
    image, mode = opened.image, opened.image.mode
    if opened.format not in ("PNG", "TIFF", "BMP"):
        raise DataError(f"{path}: {opened.format}, which does not keep labels as they are; wanted PNG, TIFF or BMP")
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
    first: dict[int, Path] = field(default_factory=dict)
    of_mask: dict[Path, tuple[int, ...]] = field(default_factory=dict)

    def add(self, path: Path, counts: dict[int, int]) -> None:
        """One mask more."""
        self.of_mask[path] = tuple(counts)
        for value, count in counts.items():
            self.pixels[value] = self.pixels.get(value, 0) + count
            self.first.setdefault(value, path)


def tally(paths: Sequence[Path]) -> Tally:
    """Reads all these masks; one that did not change since it was last read is not read again. Raises DataError."""
    found = Tally()
    for path in paths:
        status = path.stat()
        found.add(path, _counts(path, status.st_mtime_ns, status.st_size))
    return found


@cache
def _counts(path: Path, changed: int, size: int) -> dict[int, int]:
    return count_values(read_values(path))
