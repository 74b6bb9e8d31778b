"""A whole data set, read before a training does: what is in it, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dynroute.data.findings import Findings, SplitFindings
from dynroute.data.images import read_image
from dynroute.data.labels import Labels, judge
from dynroute.data.layout import list_split
from dynroute.data.listing import Listing
from dynroute.data.masks import Tally, count_values
from dynroute.data.sets.folder import class_names, found_classes, other_size
from dynroute.data.source import IGNORE, DataError, File


@dataclass
class SplitCheck(SplitFindings):
    """What a split of images and masks holds.

    Attributes:
        pairs: how many images have a mask.
        pixels: labelled pixels of each class, by its name.
        ignored: pixels that are ignored.
        outside: pixels of each stored value that is no class.
        masks_without_image: passed over.
    """

    pairs: int = 0
    pixels: dict[str, int] = field(default_factory=dict)
    ignored: int = 0
    outside: dict[int, int] = field(default_factory=dict)
    masks_without_image: list[str] = field(default_factory=list)


@dataclass
class DataCheck(Findings):
    """What images and masks hold, and how they were read, as `FolderDataset` does."""

    splits: list[SplitCheck]
    labels: Any
    ignore: int
    channels: int = 3
    range: tuple[float, float] | None = None


def check(
    root: Path,
    splits: Sequence[str],
    labels: str | Mapping[int, int] | None = None,
    ignore: int = IGNORE,
    each: Callable[[int, int], None] | None = None,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> DataCheck:
    """Reads every image and mask of these splits, and goes on past those that cannot be read.

    Args:
        root: of a data set as `FolderDataset` reads it.
        splits: the first says how many classes there are, where nothing names them.
        labels, ignore, channels, value_range: as for `FolderDataset`.
        each: called with the number of files read and of all.

    Raises:
        DataError: nothing to read: a folder is missing or empty, `classes.txt` or `labels` is malformed.
    """
    listings = [list_split(root, split) for split in splits]
    meanings = [Labels(listing.scheme(labels), ignore) for listing in listings]
    named = class_names(root, meanings[0])
    names = named
    total, done = sum(1 + (mask is not None) for listing in listings for _, mask in listing.pairs), 0

    def step() -> None:
        nonlocal done
        done += 1
        if each is not None:
            each(done, total)

    read = partial(read_image, channels=channels, value_range=value_range)
    checked: list[SplitCheck] = []
    first_of: dict[str, tuple[str, File]] = {}
    duplicates: list[tuple[str, str]] = []
    for split, listing, meaning in zip(splits, listings, meanings):
        found = _listed(split, listing)
        values, shapes = _masks(listing, found, step)
        # as in training: the first split has to show all classes, and the others' labels have to be among them
        known = None if names is None else len(names)
        if values.of_mask or listing.withheld:
            of_all = None if checked else named
            for finding in judge(values, meaning, listing.folder, known, of_all, listing.withheld):
                (found.refused if finding.refused else found.said).append(finding.message)
        names = names or [f"class_{k}" for k in range(found_classes(values.pixels, meaning))]
        _weigh(found, values, meaning, names)
        shared: dict[str, list[File]] = {}
        for image, digest in _images(listing, found, shapes, read, step):
            first = first_of.setdefault(digest, (split, image))
            if first[0] != split and first[1] == image:
                shared.setdefault(first[0], []).append(image)
            elif first[0] != split:
                duplicates.append((str(first[1]), str(image)))
        for other, images in shared.items():
            found.said.append(f"{images[0]}: in {other} too; {len(images)} of the {listing.images} images are")
        checked.append(found)
    scheme = meanings[0].scheme
    return DataCheck(str(root), names or [], checked, duplicates, scheme, ignore, channels, value_range)


def _listed(split: str, listing: Listing) -> SplitCheck:
    return SplitCheck(
        split,
        images=listing.images,
        pairs=sum(mask is not None for _, mask in listing.pairs),
        masks_without_image=[str(path) for path in listing.unpaired],
        hidden=[str(path) for path in listing.hidden],
        others=[str(path) for path in listing.others],
        refused=list(listing.faults),
    )


def _masks(listing: Listing, found: SplitCheck, step: Callable[[], None]) -> tuple[Tally, dict[File, tuple[int, ...]]]:
    """What values the masks that can be read store, and their shapes."""
    values, shapes = Tally(), {}
    for _, path in listing.pairs:
        if path is None:
            continue
        try:
            mask = listing.read(path)
            shapes[path] = mask.shape
            values.add(path, count_values(mask))
        except (DataError, OSError) as error:
            found.unreadable[str(path)] = str(error)
        step()
    return values, shapes


def _images(
    listing: Listing,
    found: SplitCheck,
    shapes: Mapping[File, tuple[int, ...]],
    read: Callable[[File], np.ndarray],
    step: Callable[[], None],
) -> Iterator[tuple[File, str]]:
    """Each image that can be read with the hash of its file; their sizes are counted and held against their masks'."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path, mask in listing.pairs:
        try:
            image = read(path)
            yield path, hashlib.sha256(path.read_bytes()).hexdigest()
            sizes[image.shape[1], image.shape[0]] += 1
            if mask is not None and (shape := shapes.get(mask)) is not None:
                fault = other_size(path, image.shape, mask, shape)
                found.refused += [] if fault is None else [fault]
        except (DataError, OSError) as error:
            found.unreadable[str(path)] = str(error)
        step()
    found.keep_sizes(sizes)


def _weigh(found: SplitCheck, values: Tally, labels: Labels, names: Sequence[str]) -> None:
    """Pixels of each class, of what is ignored, and of values that are neither."""
    pixels = [0] * len(names)
    for value, count in sorted(values.pixels.items()):
        label = labels.index(value)
        if label == IGNORE:
            found.ignored += count
        elif label is None or label >= len(names):
            found.outside[value] = count
        else:
            pixels[label] += count
    found.pixels = dict(zip(names, pixels))
