"""Batches for training, as a pure function of the seed and the step: resuming needs no state."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from dynroute.data.source import Shuffling, Source

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


class Stream(Dataset):
    """The endless training stream: position p holds sample permutation(epoch)[p mod n], augmented by its own generator.

    The permutation is of all samples, or the source's own way to shuffle (`Shuffling`), as that of shards is.
    Both the permutation of an epoch and the generator of a position come from the seed alone, so position p is the same
    whoever asks, in whatever order, in whichever worker process.
    """

    def __init__(self, source: Source, augment: Augment, seed: int) -> None:
        self.source, self.augment, self.seed = source, augment, seed
        self._epoch = -1
        self._order: np.ndarray = np.empty(0, dtype=np.int64)

    def index(self, position: int) -> int:
        """Which sample of the source stands at `position`."""
        epoch, offset = divmod(position, len(self.source))
        if epoch != self._epoch:
            self._epoch = epoch
            generator = np.random.default_rng((self.seed, 0, epoch))
            if isinstance(self.source, Shuffling):
                self._order = self.source.shuffled(generator)
            else:
                self._order = generator.permutation(len(self.source))
        return int(self._order[offset])

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self.source.read(self.index(position))
        return self.augment(image, mask, np.random.default_rng((self.seed, 1, position)))


def collate(samples: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Stack samples: images float32 [N, 3, H, W] in channels_last (as they lie already), labels uint8 [N, H, W]."""
    images = torch.from_numpy(np.stack([image for image, _ in samples])).permute(0, 3, 1, 2)
    return images, torch.from_numpy(np.stack([mask for _, mask in samples]))


def batches(
    source: Source,
    augment: Augment,
    batch: int,
    seed: int,
    start: int = 0,
    stop: int | None = None,
    workers: int = 1,
    pin_memory: bool = False,
    part: int = 0,
    parts: int = 1,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of steps `start`, `start + 1`, ... up to `stop` (endless when None).

    Args:
        source: the samples.
        augment: (image, mask, generator) -> (image, labels) of one fixed size.
        batch: samples a batch; sample k of step t is position t * batch + k of the stream.
        seed: the stream is a function of this alone; the number of workers never changes it.
        workers: processes that prepare batches ahead; 0 prepares them in this one.
        pin_memory: for copies to a GPU.
        part, parts: of each batch only this one of so many equal parts, its samples in their order.

    Yields:
        images float32 [batch / parts, 3, H, W] (channels_last), labels uint8 [batch / parts, H, W].

    Raises:
        ValueError: a batch that does not divide into so many parts.
    """
    if batch % parts:
        raise ValueError(f"batch: wanted a multiple of {parts} parts, got {batch}")
    share = batch // parts
    positions = _Positions(start, stop, batch, range(part * share, (part + 1) * share))
    # Fork shares the images decoded so far with the workers; workers never touch the device.
    context = "fork" if workers and sys.platform == "linux" else None
    loader = DataLoader(
        Stream(source, augment, seed),
        batch_size=share,
        sampler=positions,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        multiprocessing_context=context,
        # The loader draws a seed for its workers; from a generator of its own, so that the global one, which drop path
        # draws from, is the same whether a run was interrupted or not.
        generator=torch.Generator(),
        worker_init_fn=_detach,
    )
    yield from loader


def _detach(worker: int) -> None:
    """Keep signals to the process group (Ctrl-C, a scheduler) from ending a worker before its parent."""
    if hasattr(os, "setsid"):
        os.setsid()


class _Positions:
    """Stream positions of steps `start` up to `stop`, lazily: of each batch, those in `places`."""

    def __init__(self, start: int, stop: int | None, batch: int, places: range) -> None:
        self.start, self.stop, self.batch, self.places = start, stop, batch, places

    def __iter__(self) -> Iterator[int]:
        step = self.start
        while self.stop is None or step < self.stop:
            yield from (step * self.batch + place for place in self.places)
            step += 1
