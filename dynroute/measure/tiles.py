"""Pictures that are too large to go through a network at once: cut into tiles that overlap, and put together again.

Tiles begin at multiples of 32 pixels, so that the maps of all scales lie in a tile as they do in the whole picture, and
what a tile reaches beyond the picture is zero, as the network itself pads. Of two tiles that overlap, each one's outer
quarter of the overlap counts for nothing: there the network saw least of what lies around. Over the half between them
the weights of the logits go evenly from one tile to the other. So where a quarter of the overlap is at least what a
network sees around a pixel, the logits are those of the whole picture, but for what a tile cannot know: gates read the
mean of their map, which is a tile's instead of the picture's, so that routes differ from tile to tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dynroute.models.config import NetworkConfig

GRID = 32
"""Tiles begin at its multiples: the network's coarsest pixel."""
TILE, OVERLAP = (1024, 1024), 128
"""What is taken where nobody says."""
MOST_BYTES = 2 * 1024**3
"""A picture that wants more than this at once is cut where nobody says."""


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of a picture lie: row by row, from the left.

    Attributes:
        height, width: of the picture.
        size: height and width of each tile; that of the picture where it is not cut.
        tops, lefts: where rows and columns of tiles begin.
    """

    height: int
    width: int
    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def window(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of the picture that tile `index` holds."""
        row, column = divmod(index, len(self.lefts))
        top, left = self.tops[row], self.lefts[column]
        return (
            slice(top, min(top + self.size[0], self.height)),
            slice(left, min(left + self.size[1], self.width)),
        )


def memory(config: NetworkConfig, height: int, width: int) -> int:
    """About how many bytes a picture takes at once: as the network's input, the maps of the native CPU runtime in
    float32, and the logits."""
    return height * width * (8 * config.in_channels + 3 * config.channels // 2 + 4 * config.num_classes)


def check_tile(tile: tuple[int, int], overlap: int) -> None:
    """Raises ValueError for sizes in pixels that no picture can be cut by."""
    if min(tile) < GRID or tile[0] % GRID or tile[1] % GRID:
        raise ValueError(f"tile: wanted multiples of {GRID} pixels, got {tile[0]}x{tile[1]}")
    if overlap < 0 or overlap % GRID or overlap >= min(tile):
        raise ValueError(
            f"overlap: wanted a multiple of {GRID} pixels below the tile's {min(tile)}, got {overlap} "
            f"(tiles of {tile[0]}x{tile[1]})"
        )


def cut(height: int, width: int, tile: tuple[int, int] | None, overlap: int = OVERLAP) -> Tiles:
    """Tiles for a picture of height x width; one, of its own size, where it fits or `tile` is None.

    Neighbours overlap by `overlap` pixels or more: tiles are spread evenly, none is narrower than others.

    Raises:
        ValueError: see `check_tile`.
    """
    if tile is not None:
        check_tile(tile, overlap)
    if tile is None or (height <= tile[0] and width <= tile[1]):
        return Tiles(height, width, (height, width), (0,), (0,))
    # a picture that is narrower than a tile is padded by itself, not up to the tile
    size = (min(tile[0], _up(height)), min(tile[1], _up(width)))
    return Tiles(height, width, size, _starts(height, size[0], overlap), _starts(width, size[1], overlap))


class Mosaic:
    """The label map of a picture, from the logits of its tiles as they come, row by row.

    Holds the label map, and sums of logits for no more than one tile and the overlap of two rows.

    Attributes:
        labels: uint8 [H,W], the class of the largest logit; whole once all tiles are there.
        confidence: uint16 [H,W], that class's probability, 65535 being 1; None where it was not asked for.
        finite: whether all logits were.
    """

    def __init__(self, tiles: Tiles, confidence: bool = False) -> None:
        self.tiles = tiles
        self.labels = np.empty((tiles.height, tiles.width), dtype=np.uint8)
        self.confidence = np.empty((tiles.height, tiles.width), dtype=np.uint16) if confidence else None
        self.finite = True
        self._rows = _weights(tiles.tops, tiles.size[0])
        self._columns = _weights(tiles.lefts, tiles.size[1])
        self._added = 0
        self._left = self._above = self._below = torch.empty(0)

    @property
    def whole(self) -> bool:
        """Whether all tiles are there."""
        return self._added == len(self.tiles)

    @torch.inference_mode()
    def add(self, logits: Tensor) -> None:
        """The next tile: float [K,h,w] of the tile's size, on any device."""
        tiles = self.tiles
        row, column = divmod(self._added, len(tiles.lefts))
        top, left = tiles.tops[row], tiles.lefts[column]
        self._added += 1
        if len(tiles) == 1:
            self._keep(logits, 0, 0)
            return
        high = tiles.tops[row + 1] - top if row + 1 < len(tiles.tops) else tiles.size[0]
        wide = tiles.lefts[column + 1] - left if column + 1 < len(tiles.lefts) else tiles.size[1]
        rows, columns = self._rows[row].to(logits.device), self._columns[column].to(logits.device)
        total = logits.float() * (rows[:, None] * columns)
        # What the next tile covers too goes on to it; only the columns that are done meet the sums of the row above.
        if column > 0:
            total[:, :, : self._left.shape[2]] += self._left
        if row > 0:
            total[:, : self._above.shape[1], :wide] += self._above[:, :, left : left + wide]
        if column + 1 < len(tiles.lefts):
            self._left = total[:, :, wide:].clone()
        if row + 1 < len(tiles.tops):
            if column == 0:
                shape = (total.shape[0], tiles.size[0] - high, tiles.lefts[-1] + tiles.size[1])
                self._below = total.new_empty(shape)
            self._below[:, :, left : left + wide] = total[:, high:, :wide]
            if column + 1 == len(tiles.lefts):
                self._above = self._below
        self._keep(total[:, :high, :wide], top, left)

    def _keep(self, logits: Tensor, top: int, left: int) -> None:
        """Classes of logits that are done, without what lies beyond the picture."""
        logits = logits[:, : self.tiles.height - top, : self.tiles.width - left]
        largest, classes = logits.max(0)
        self.finite = self.finite and bool(largest.isfinite().all())
        rows, columns = slice(top, top + logits.shape[1]), slice(left, left + logits.shape[2])
        self.labels[rows, columns] = classes.to(torch.uint8).cpu().numpy()
        if self.confidence is not None:
            # the softmax at its largest: e^0 over the sum of all
            share = 1.0 / (logits.float() - largest).exp_().sum(0)
            self.confidence[rows, columns] = (share * 65535.0).round_().cpu().numpy().astype(np.uint16)


def _up(size: int) -> int:
    return -(-size // GRID) * GRID


def _starts(size: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Where tiles begin along a side; the last ends with the picture, rounded up to the grid."""
    spare = _up(size) - tile
    if spare == 0:
        return (0,)
    steps = -(-spare // (tile - overlap))
    return tuple(spare * k // steps // GRID * GRID for k in range(steps + 1))


def _weights(starts: tuple[int, ...], tile: int) -> list[Tensor]:
    """How much a tile's logits count along a side, float32 [tile] of each; over all tiles they add up to 1."""
    where = np.arange(tile) + 0.5
    own: list[np.ndarray] = [np.ones(tile) for _ in starts]
    for (k, start), (_, following) in pairwise(enumerate(starts)):
        shared = start + tile - following
        if shared > 0:
            # of the overlap: its outer quarters are 0 and 1, a straight line between
            ramp = np.clip((where - shared / 4) / (shared / 2), 0.0, 1.0)
            own[k + 1] = np.minimum(own[k + 1], ramp)
            own[k] = np.minimum(own[k], ramp[::-1])
    total = np.zeros(starts[-1] + tile)
    for start, weight in zip(starts, own):
        total[start : start + tile] += weight
    return [
        torch.from_numpy((weight / total[start : start + tile]).astype(np.float32))
        for start, weight in zip(starts, own)
    ]
