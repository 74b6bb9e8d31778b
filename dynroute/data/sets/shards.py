"""A data set in shards: `root/<split>-000000.tar`, ..., each with images and masks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np

from dynroute.data import shards
from dynroute.data.layout import find_layout
from dynroute.data.sets.folder import FolderDataset
from dynroute.data.source import IGNORE
from dynroute.data.tar import Member


class ShardDataset(FolderDataset):
    """Images and masks of one split in tars, as WebDataset has them, read in place and in any order.

    Of each sample `KEY.jpg` (or png, tif, ...) and `KEY.mask.png`, see `dynroute.data.shards.list_split`; masks, labels
    and class names (`classes.txt` beside the tars) are those of `FolderDataset`. The first time each tar is read once
    from end to end: where its members lie and what values its masks store is kept in the cache folder
    (`~/.cache/dynroute/shards`) for as long as the tar keeps its size and time.

    An epoch of training goes through the shards in mixed order, `window` of them at a time, and mixes the samples of
    those: files are read while they are in the system's memory, and the order is still a function of the seed alone.

    Args:
        root: a folder, a tar, or a pattern such as `/data/{train,val}-{000000..000127}.tar`, see `find_shards`.
        split: the shards' names begin with it, or they lie in a folder of this name.
        num_classes, labels, ignore, channels, value_range: see `FolderDataset`.
        cache: keep decoded images in memory.
        window: shards that are mixed with each other; as many as there are mix everything.

    Raises:
        DataError: see `FolderDataset`; a message names the tar and the member in it.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        num_classes: int | None = None,
        cache: bool | None = None,
        labels: str | Mapping[int, int] | None = None,
        ignore: int = IGNORE,
        window: int = 8,
        channels: int = 3,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        if window < 1:
            raise ValueError(f"window: wanted 1 or more shards, got {window}")
        super().__init__(root, split, num_classes, bool(cache), labels, ignore, shards.NAME, channels, value_range)
        self.window = window
        tars = [cast(Member, image).tar for image, _ in self._pairs]
        starts = [k for k, tar in enumerate(tars) if k == 0 or tar != tars[k - 1]]
        self._of_tar = np.split(np.arange(len(self), dtype=np.int64), starts[1:])

    def name(self, index: int) -> str:
        """The key of sample `index`."""
        return cast(Member, self._pairs[index][0]).key

    def shuffled(self, generator: np.random.Generator) -> np.ndarray:
        """All samples, shards in mixed order, the samples of a window of shards mixed: int64 [len(self)]."""
        order = generator.permutation(len(self._of_tar))
        windows = [order[k : k + self.window] for k in range(0, len(order), self.window)]
        return np.concatenate(
            [generator.permutation(np.concatenate([self._of_tar[tar] for tar in window])) for window in windows]
        )


def open_dataset(
    root: str | Path,
    split: str,
    num_classes: int | None = None,
    cache: bool | None = None,
    labels: str | Mapping[int, int] | None = None,
    ignore: int = IGNORE,
    window: int = 8,
    kind: str = "folder",
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> FolderDataset:
    """A split of whatever layout is at `root`: shards where it has some, or where `kind` is `shards`.

    The other arguments, and errors, are those of `ShardDataset` and `FolderDataset`.
    """
    if kind == shards.NAME or find_layout(Path(root).expanduser()) == shards.NAME:
        return ShardDataset(root, split, num_classes, cache, labels, ignore, window, channels, value_range)
    return FolderDataset(root, split, num_classes, cache, labels, ignore, None, channels, value_range)
