"""Folders of classes, read before a training does: what is in them, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from dynroute.data.findings import Findings, SplitFindings
from dynroute.data.images import read_image
from dynroute.data.parallel import in_threads
from dynroute.data.sets.classes import TRAIN, ClassListing, list_classes
from dynroute.data.source import DataError


@dataclass
class ClassSplitCheck(SplitFindings):
    """What a split of folders of classes holds; `counts`: how many images of each class, by its name."""

    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class ClassCheck(Findings):
    """What folders of classes hold; `two_classes`: images of the same bytes in two of them."""

    splits: list[ClassSplitCheck]
    two_classes: list[tuple[str, str]]


def check_classes(
    root: Path, splits: Sequence[str], channels: int = 3, value_range: tuple[float, float] | None = None
) -> ClassCheck:
    """Reads every image of these splits, with a bar, and goes on past those that cannot be read.

    Args:
        root, channels, value_range: as for `ImageClasses`.
        splits: their names.

    Raises:
        DataError: nothing to read: `root/train` is missing or has no classes, `classes.txt` is malformed.
    """
    found = ClassCheck(str(root), list_classes(root, TRAIN).names, [], [], [])
    read = partial(read_image, channels=channels, value_range=value_range)
    listings: list[ClassListing] = []
    first_of: dict[bytes, tuple[int, int]] = {}
    for split in splits:
        checked = ClassSplitCheck(split)
        found.splits.append(checked)
        try:
            listing = list_classes(root, split)
        except DataError as error:
            checked.refused.append(str(error))
            continue
        listings.append(listing)
        checked.images, checked.said = len(listing.files), listing.said
        checked.counts = dict(zip(listing.names, listing.counts))
        checked.hidden, checked.others = (list(map(str, paths)) for paths in (listing.hidden, listing.others))
        sizes: Counter[tuple[int, int]] = Counter()
        indices = range(len(listing.files))
        for index, seen in zip(indices, in_threads(partial(_look, read, listing), indices, f"check {split}")):
            if isinstance(seen, str):
                checked.unreadable[str(listing.file(index))] = seen
                continue
            digest, size = seen
            sizes[size] += 1
            place, first = first_of.setdefault(digest, (len(listings) - 1, index))
            pair = str(listings[place].file(first)), str(listing.file(index))
            if listings[place] is not listing:
                found.duplicates.append(pair)
            if listings[place].label(first) != listing.label(index):
                found.two_classes.append(pair)
        checked.keep_sizes(sizes)
    return found


def _look(read: Callable[[Path], np.ndarray], listing: ClassListing, index: int) -> tuple[bytes, tuple[int, int]] | str:
    """The hash of a file and the width and height of its image; or the line on why it cannot be read."""
    path = listing.file(index)
    try:
        height, width = read(path).shape[:2]
        return hashlib.sha256(path.read_bytes()).digest(), (width, height)
    except (DataError, OSError) as error:
        return str(error)
