"""Pictures through a network: whole or by tiles, several at once, with what each one cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.data.augment import Normalise
from dynroute.measure.opened import Model
from dynroute.measure.tiles import GRID, Mosaic, Tiles
from dynroute.space.wiring import padded_size

K = TypeVar("K")
# Nodes' work is the same for each block of 32x32 pixels; that of so many blocks a side is counted once.
_BLOCKS = 4


@dataclass
class Segmented(Generic[K]):
    """What became of a picture.

    Attributes:
        key: what the caller named it by.
        image: uint8 [H,W,C], as it came.
        labels: uint8 [H,W].
        confidence: uint16 [H,W], see `Mosaic`; None where it was not asked for.
        finite: False where the network's output is not: then labels mean nothing.
        tiles: how many it went through the network in; all that follows is summed over them.
        expected_mflops, real_mflops: the paper's costs, at the padded size.
        executed_macs: multiply-accumulates that were really done.
        all_open_macs: the same with all paths open, without the gates' own.
        seconds: in the network; of a batch each part has an equal share.
    """

    key: K
    image: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray | None
    finite: bool
    tiles: int
    expected_mflops: float
    real_mflops: float
    executed_macs: int
    all_open_macs: int
    seconds: float


class _Work(Generic[K]):
    """A picture under way."""

    def __init__(self, key: K, image: np.ndarray, tiles: Tiles, confidence: bool) -> None:
        self.key, self.image, self.tiles = key, image, tiles
        self.mosaic = Mosaic(tiles, confidence)
        self.expected = self.real = self.seconds = 0.0
        self.executed = self.all_open = 0
        self.finite = True

    def input(self, index: int, normalise: Normalise) -> Tensor:
        """Tile `index` as the network takes it, float32 [h,w,C], zero beyond the picture."""
        rows, columns = self.tiles.window(index)
        pixels = torch.from_numpy(normalise(self.image[rows, columns]))
        missing = (self.tiles.size[0] - pixels.shape[0], self.tiles.size[1] - pixels.shape[1])
        return F.pad(pixels, (0, 0, 0, missing[1], 0, missing[0])) if any(missing) else pixels

    def done(self) -> Segmented[K]:
        mosaic = self.mosaic
        return Segmented(
            self.key, self.image, mosaic.labels, mosaic.confidence, self.finite and mosaic.finite, len(self.tiles),
            self.expected, self.real, self.executed, self.all_open, self.seconds,
        )  # fmt: skip


def segment(
    model: Model,
    pictures: Iterable[tuple[K, np.ndarray]],
    normalise: Normalise,
    cut: Callable[[int, int], Tiles],
    *,
    batch: int = 1,
    confidence: bool = False,
    each: Callable[[int, int], None] | None = None,
) -> Iterator[Segmented[K]]:
    """Segments pictures one after the other, in their order.

    Tiles of one size go through the network together, also those of different pictures. Beside them and a few pictures
    nothing is held.

    Args:
        model: with a runtime.
        pictures: keys, and images uint8 [H,W,C].
        normalise: as in training.
        cut: from a picture's height and width to its tiles.
        batch: tiles at once, at most.
        confidence: also the probability of each pixel's class.
        each: called with (tiles done, tiles in all) of the picture at hand.
    """
    held: list[tuple[_Work[K], int]] = []
    for key, image in pictures:
        work = _Work(key, image, cut(*image.shape[:2]), confidence)
        for index in range(len(work.tiles)):
            if held and held[0][0].tiles.size != work.tiles.size:
                yield from _through(model, held, normalise, each)
                held = []
            held.append((work, index))
            if len(held) == batch:
                yield from _through(model, held, normalise, each)
                held = []
    if held:
        yield from _through(model, held, normalise, each)


def _through(
    model: Model,
    held: list[tuple[_Work[K], int]],
    normalise: Normalise,
    each: Callable[[int, int], None] | None,
) -> Iterator[Segmented[K]]:
    """Tiles of one size through the network; the pictures that are whole with them."""
    images = torch.stack([work.input(index, normalise) for work, index in held]).permute(0, 3, 1, 2)
    started = time.perf_counter()
    out = model(images)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = (time.perf_counter() - started) / len(held)
    expected, real = out.expected_mflops.tolist(), out.real_mflops.tolist()
    executed, nodes = out.executed_macs.tolist(), out.executed_nodes.sum((1, 2, 3)).tolist()
    finite = out.gates.isfinite().flatten(1).all(1).tolist()
    open_nodes = _open_nodes(model, *images.shape[-2:])
    for n, (work, index) in enumerate(held):
        work.expected += expected[n]
        work.real += real[n]
        work.executed += executed[n]
        # stem and decoder are done in full whatever the routes, so they are in `executed` as they are
        work.all_open += executed[n] - nodes[n] + open_nodes
        work.seconds += seconds
        work.finite = work.finite and finite[n]
        work.mosaic.add(out.logits[n])
        if each is not None:
            each(index + 1, len(work.tiles))
        if work.mosaic.whole:
            yield work.done()


def _open_nodes(model: Model, height: int, width: int) -> int:
    """Multiply-accumulates of all nodes at an image size, with every path open, without gates."""
    side = _BLOCKS * GRID
    counted = model.all_open_work(side, side)
    assert counted is not None
    padded = padded_size(height, width, model.net.config.small_gate)
    return int(counted[1].sum()) * (padded[0] // GRID) * (padded[1] // GRID) // _BLOCKS**2
