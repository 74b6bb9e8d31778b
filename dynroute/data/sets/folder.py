"""A data set in a folder: `root/images/<split>/*.{jpg,png,...}` beside `root/masks/<split>/*.png`, or official."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from dynroute.data.images import image_area, read_image, say_once, say_passed_over
from dynroute.data.labels import Labels, judge
from dynroute.data.layout import list_split, read_class_names
from dynroute.data.parallel import in_threads
from dynroute.data.source import IGNORE, DataError, File

# Decoded images of a split are kept in memory up to this size, so that no epoch after the first decodes a JPEG.
CACHE_LIMIT_BYTES = 2 * 1024**3


class FolderDataset:
    """Images and masks of one split, paired by file stem; or Cityscapes or PASCAL VOC 2012 as they are distributed.

    Masks are grey or palette PNGs (or TIFF, BMP) whose stored values are class indices; 255 is ignored. Class names
    come from `root/classes.txt` (one a line) where it exists; otherwise they are `class_0`, `class_1`, ... and their
    number is `num_classes`, or the largest label of this split + 1. A folder without `images/` that looks like an
    official layout is read as one, see `Cityscapes` and `VOC2012`: its labels and class names are then known.

    Every mask of the split is read once at the start: values that cannot be meant are refused, and what may not be
    meant is said once in the log, see `judge`. Images and masks are turned upright as their EXIF says.

    Args:
        root: folder that holds `images/` and `masks/`.
        split: name of the subfolder, such as `train` or `val`.
        num_classes: number of classes; must agree with `classes.txt` where that exists.
        cache: keep decoded images in memory; None does so when the split is smaller than 2 GiB.
        labels: what the values of the masks mean, a map or a named scheme, see `Labels`.
        ignore: the value in the masks that is ignored; what `read` returns has 255 there.
        layout: `folder`, `cityscapes`, `voc2012` or `shards`; None: the one that is there.
        channels: of the images, and value_range: what their values mean; see `read_image`.

    Attributes:
        layout: the one that is read; `sbd` is SBD's release alone.
        labelled: False for a `test` split whose labels are not public: all labels that `read` returns are 255.
        named: whether the data set names its classes itself.

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
        layout: str | None = None,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        listing = list_split(self.root, split, layout)
        self.layout = listing.layout
        if listing.faults:
            raise DataError(listing.faults[0])
        say_passed_over(self.root, listing.hidden, listing.others)
        self._pairs, self._read_mask = listing.pairs, listing.read
        self._read_image = partial(read_image, channels=channels, value_range=value_range)
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._labels = Labels(listing.scheme(labels), ignore)
        names = class_names(self.root, self._labels, num_classes)
        known = num_classes if names is None else len(names)
        if cache is None:
            cache = sum(image_area(path) for path, _ in self._pairs) * (channels + 1) <= CACHE_LIMIT_BYTES
        values: dict[File, np.ndarray] | None = {} if cache else None
        found = listing.tally([mask for _, mask in self._pairs if mask is not None], self._read_mask, values)
        # Only where nobody else says how many classes there are, this split has to show them all.
        of_all = names if num_classes is None else None
        for finding in judge(found, self._labels, listing.folder, known, of_all, listing.withheld):
            if finding.refused:
                raise DataError(finding.message)
            say_once(finding.message)
        self.labelled = any(self._labels.index(value) != IGNORE for value in found.pixels)
        self.named = names is not None
        self._limit = found_classes(found.pixels, self._labels) if known is None else known
        self._names = names or [f"class_{k}" for k in range(self._limit)]
        if values is not None:
            # Here and not at first use: worker processes forked later share these pages instead of each decoding all.
            images = in_threads(self._read_image, [path for path, _ in self._pairs], "read images")
            self._cache = {
                index: self._checked(index, image, None if mask is None else values.pop(mask))
                for index, ((_, mask), image) in enumerate(zip(self._pairs, images))
            }

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in label order."""
        return self._names

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        """The file stem of sample `index`."""
        return self._pairs[index][0].stem

    def files(self, index: int) -> tuple[File, File | None]:
        """The image and the mask of sample `index`; no mask where a `test` split has none."""
        return self._pairs[index]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample `index`: image uint8 [H, W, channels], labels uint8 [H, W]. Raises DataError for a broken file."""
        cached = self._cache.get(index)
        return cached if cached is not None else self._decode(index)

    def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self._pairs[index]
        return self._checked(index, self._read_image(image), None if mask is None else self._read_mask(mask))

    def _checked(self, index: int, image: np.ndarray, values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """An image with the labels of its mask's values, all ignored without a mask. Raises DataError."""
        image_path, mask_path = self._pairs[index]
        if mask_path is None or values is None:
            return image, np.full(image.shape[:2], IGNORE, dtype=np.uint8)
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


def known_classes(
    root: str | Path, split: str, labels: str | Mapping[int, int] | None = None, ignore: int = IGNORE
) -> int | None:
    """How many classes the data set says that it has, before a mask is read; None: it does not. Raises DataError."""
    folder = Path(root).expanduser()
    names = class_names(folder, Labels(list_split(folder, split).scheme(labels), ignore))
    return None if names is None else len(names)


def found_classes(pixels: Mapping[int, int], labels: Labels) -> int:
    """How many classes these values of masks ask for: the largest label + 1."""
    meant = (labels.index(value) for value in pixels)
    return max((label + 1 for label in meant if label is not None and label != IGNORE), default=1)


def other_size(image_path: File, image: tuple[int, ...], mask_path: File, mask: tuple[int, ...]) -> str | None:
    """The line that refuses a mask of another shape [H,W] than its image's [H,W,3], both upright; None: they agree."""
    if image[:2] == mask:
        return None
    wanted, got = (f"{shape[1]}x{shape[0]}" for shape in (image, mask))
    return f"{mask_path}: size {got}, but its image {image_path.name} is {wanted} (width x height)"
