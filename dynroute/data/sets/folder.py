"""A data set in a folder: `root/images/<split>/*.{jpg,png,...}` beside `root/masks/<split>/*.png`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dynroute.data.images import image_area, read_image, say_once, say_passed_over
from dynroute.data.labels import Labels, judge
from dynroute.data.layout import list_split, read_class_names
from dynroute.data.masks import read_values, tally
from dynroute.data.source import IGNORE, DataError

# Decoded images of a split are kept in memory up to this size, so that no epoch after the first decodes a JPEG.
CACHE_LIMIT_BYTES = 2 * 1024**3


class FolderDataset:
    """Images and masks of one split, paired by file stem; or Cityscapes as it is distributed.

    Masks are grey or palette PNGs (or TIFF, BMP) whose stored values are class indices; 255 is ignored. Class names
    come from `root/classes.txt` (one a line) where it exists; otherwise they are `class_0`, `class_1`, ... and their
    number is `num_classes`, or the largest label of this split + 1. In `leftImg8bit/` and `gtFine/`, Cityscapes'
    official layout, masks are the `*_gtFine_labelIds.png` and `labels` is `cityscapes` unless something else is given.

    Every mask of the split is read once at the start: values that cannot be meant are refused, and what may not be
    meant is said once in the log, see `judge`. Images and masks are turned upright as their EXIF says.

    Args:
        root: folder that holds `images/` and `masks/`.
        split: name of the subfolder, such as `train` or `val`.
        num_classes: number of classes; must agree with `classes.txt` where that exists.
        cache: keep decoded images in memory; None does so when the split is smaller than 2 GiB.
        labels: what the values of the masks mean, a map or a named scheme, see `Labels`.
        ignore: the value in the masks that is ignored; what `read` returns has 255 there.

    Raises:
        DataError: something is missing or malformed; one line that names the file.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        cache: bool | None = None,
        labels: str | Mapping[int, int] | None = None,
        ignore: int = IGNORE,
    ) -> None:
        self.root, self.split = Path(root), split
        listing = list_split(self.root, split)
        if listing.faults:
            raise DataError(listing.faults[0])
        say_passed_over(self.root, listing.hidden, listing.others)
        self._pairs = listing.pairs
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._labels = Labels(listing.labels if labels is None else labels, ignore)
        names = class_names(self.root, self._labels, num_classes)
        known = num_classes if names is None else len(names)
        found = tally([mask for _, mask in self._pairs])
        # Only where nobody else says how many classes there are, this split has to show them all.
        for finding in judge(found, self._labels, listing.folder, known, names if num_classes is None else None):
            if finding.refused:
                raise DataError(finding.message)
            say_once(finding.message)
        self._limit = found_classes(found.pixels, self._labels) if known is None else known
        self._names = names or [f"class_{k}" for k in range(self._limit)]
        if cache is None:
            cache = sum(image_area(path) for path, _ in self._pairs) * 4 <= CACHE_LIMIT_BYTES
        if cache:
            # Here and not at first use: worker processes forked later share these pages instead of each decoding all.
            self._cache = {index: self._decode(index) for index in range(len(self))}

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in label order."""
        return self._names

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        """The file stem of sample `index`."""
        return self._pairs[index][0].stem

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample `index`: image uint8 [H, W, 3] in RGB, labels uint8 [H, W]. Raises DataError for a broken file."""
        cached = self._cache.get(index)
        return cached if cached is not None else self._decode(index)

    def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, mask_path = self._pairs[index]
        image, values = read_image(image_path), read_values(mask_path)
        if (fault := other_size(image_path, image.shape, mask_path, values.shape)) is not None:
            raise DataError(fault)
        return image, self._labels(mask_path, values, self._limit)


def class_names(root: Path, labels: Labels, wanted: int | None = None) -> list[str] | None:
    """The classes' names: of `classes.txt`, or those that the scheme has; None where nothing names them.

    Raises:
        DataError: `classes.txt` is malformed, or their number is not the `wanted` one, or not the scheme's.
    """
    names = read_class_names(root)
    path = root / "classes.txt" if names is not None else root
    if names is None:
        names = labels.names or ([f"class_{k}" for k in range(labels.classes)] if labels.classes else None)
    if names is not None and labels.classes not in (None, len(names)):
        raise DataError(f"{path}: {len(names)} classes named, but labels {labels.scheme!r} has {labels.classes}")
    if names is not None and wanted not in (None, len(names)):
        raise DataError(f"{path}: {len(names)} classes named, but {wanted} wanted")
    return names


def found_classes(pixels: Mapping[int, int], labels: Labels) -> int:
    """How many classes these values of masks ask for: the largest label + 1."""
    meant = (labels.index(value) for value in pixels)
    return max((label + 1 for label in meant if label is not None and label != IGNORE), default=1)


def other_size(image_path: Path, image: tuple[int, ...], mask_path: Path, mask: tuple[int, ...]) -> str | None:
    """The line that refuses a mask of another shape [H,W] than its image's [H,W,3], both upright; None: they agree."""
    if image[:2] == mask:
        return None
    wanted, got = (f"{shape[1]}x{shape[0]}" for shape in (image, mask))
    return f"{mask_path}: size {got}, but its image {image_path.name} is {wanted} (width x height)"
