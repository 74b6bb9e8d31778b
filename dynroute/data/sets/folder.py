"""A data set in a folder: `root/images/<split>/*.{jpg,jpeg,png}` beside `root/masks/<split>/*.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dynroute.data.source import IGNORE, DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
# Decoded images of a split are kept in memory up to this size, so that no epoch after the first decodes a JPEG.
CACHE_LIMIT_BYTES = 2 * 1024**3


class FolderDataset:
    """Images and masks of one split, paired by file stem.

    Masks are 8-bit grey or palette PNGs whose values are class indices; 255 is ignored. Class names come from
    `root/classes.txt` (one a line) where it exists; otherwise they are `class_0`, `class_1`, ... and their number is
    `num_classes`, or the largest label of this split + 1.

    Args:
        root: folder that holds `images/` and `masks/`.
        split: name of the subfolder, such as `train` or `val`.
        num_classes: number of classes; must agree with `classes.txt` where that exists.
        cache: keep decoded images in memory; None does so when the split is smaller than 2 GiB.

    Raises:
        DataError: something is missing or malformed; one line that names the file.
    """

    def __init__(self, root: str | Path, split: str, num_classes: int | None = None, cache: bool | None = None) -> None:
        self.root, self.split = Path(root), split
        self._pairs = _pairs(self.root, split)
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        names = _class_names(self.root)
        if names is not None and num_classes is not None and len(names) != num_classes:
            raise DataError(f"{self.root / 'classes.txt'}: {len(names)} classes named, but {num_classes} wanted")
        self._limit = num_classes if names is None else len(names)
        if self._limit is None:
            self._limit = self._largest_label() + 1
        self._names = names or [f"class_{k}" for k in range(self._limit)]
        if cache is None:
            width, height = _open(self._pairs[0][0]).size
            cache = width * height * 4 * len(self._pairs) <= CACHE_LIMIT_BYTES
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
        image = _pixels(image_path, "RGB")
        mask = _labels(mask_path)
        if image.shape[:2] != mask.shape:
            wanted, got = _size(image.shape), _size(mask.shape)
            raise DataError(f"{mask_path}: size {got}, but its image {image_path.name} is {wanted} (width x height)")
        bad = mask[(mask >= self._limit) & (mask != IGNORE)] if self._limit is not None else mask[:0]
        if bad.size:
            raise DataError(
                f"{mask_path}: label {int(bad[0])} found, wanted 0..{(self._limit or 1) - 1} or {IGNORE} (ignored)"
            )
        return image, mask

    def _largest_label(self) -> int:
        largest = -1
        for _, mask_path in self._pairs:
            mask = _labels(mask_path)
            kept = mask[mask != IGNORE]
            largest = max(largest, int(kept.max()) if kept.size else -1)
        if largest < 0:
            raise DataError(f"{self.root / 'masks' / self.split}: every mask is empty (all {IGNORE}), wanted labels")
        return largest


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    images, masks = root / "images" / split, root / "masks" / split
    for folder in (root, images, masks):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder, wanted {root}/images/{split}/*.jpg and masks/{split}/*.png")
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"{images}: no image found, wanted files ending in {', '.join(IMAGE_SUFFIXES)}")
    pairs: list[tuple[Path, Path]] = []
    seen: dict[str, Path] = {}
    for path in found:
        if path.stem in seen:
            raise DataError(f"{path}: two images share the stem of {seen[path.stem].name}, wanted one")
        seen[path.stem] = path
        mask = masks / f"{path.stem}.png"
        if not mask.is_file():
            raise DataError(f"{mask}: no such mask, wanted one for the image {path}")
        pairs.append((path, mask))
    return pairs


def _class_names(root: Path) -> list[str] | None:
    path = root / "classes.txt"
    if not path.is_file():
        return None
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not 1 <= len(names) <= IGNORE:
        raise DataError(f"{path}: {len(names)} class names found, wanted 1 to {IGNORE}, one a line")
    return names


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        raise DataError(f"{path}: not a readable image ({error})") from error


def _pixels(path: Path, mode: str) -> np.ndarray:
    with _open(path) as image:
        try:
            return np.array(image.convert(mode))
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path}: broken image ({error})") from error


def _labels(path: Path) -> np.ndarray:
    with _open(path) as image:
        # A palette image's indices are its labels; converting it would turn them into grey values.
        if image.mode not in ("L", "P", "1"):
            raise DataError(f"{path}: mode {image.mode}, wanted an 8-bit grey or palette PNG of class indices")
        try:
            return np.array(image, dtype=np.uint8)
        except (OSError, SyntaxError) as error:
            raise DataError(f"{path}: broken image ({error})") from error


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
