"""The routing space's wiring: which nodes exist, which paths leave them, what feeds them (SPEC, "Stem and grid").

Rows count the init cell as row 0, so grid layer l is row l + 1.  Paths are always in the order up, keep, down.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from dynroute.space.kept import kept

SCALES = 4
UP, KEEP, DOWN = range(3)
PATH_NAMES = ("up", "keep", "down")
PART_NAMES = ("gate", "cell", "up", "keep", "down")
# The order of a gate's outputs in published checkpoints, as far as the node has the path.
PUBLISHED_ORDER = (KEEP, UP, DOWN)
# A sample is closed at a node when its alphas sum to less than this; a path is closed at or below it.
CLOSED_BELOW = 1e-4


# Sides of the network's input are multiples of this; with the small gate a side is at least `SMALL_GATE_SIDE`.
SIDE_MULTIPLE, SMALL_GATE_SIDE = 32, 128


def padded_size(height: int, width: int, small_gate: bool) -> tuple[int, int]:
    """Height and width in pixels that images are padded to (SPEC, "Stem and grid")."""
    smallest = SMALL_GATE_SIDE if small_gate else SIDE_MULTIPLE
    padded = [max(smallest, -(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE) for side in (height, width)]
    return padded[0], padded[1]


@dataclass(frozen=True)
class Node:
    """One node of the space.

    Attributes:
        row: 0 for the init cell, l + 1 for grid layer l.
        scale: 0..3 for 1/4..1/32 of the image.
        paths: which of up, keep, down leave the node.
        sources: which of up, keep, down feed it (`up` comes from scale + 1, `down` from scale - 1, in row - 1).
    """

    row: int
    scale: int
    paths: tuple[bool, bool, bool]
    sources: tuple[bool, bool, bool]

    @property
    def published_order(self) -> tuple[int, ...]:
        """Existing paths in the order of published gate weights: keep, then up, then down."""
        return tuple(p for p in PUBLISHED_ORDER if self.paths[p])


def nodes_in_row(row: int) -> int:
    """1 for the init cell, then min(l + 2, 4)."""
    return min(row + 1, SCALES)


@lru_cache(maxsize=64)
def build_space(layers: int) -> tuple[tuple[Node, ...], ...]:
    """All nodes, row by row (layers + 1 rows).

    Raises:
        ValueError: layers < 4.
    """
    if layers < 4:
        raise ValueError(f"layers: wanted at least 4 (all four scales must appear), got {layers}")
    rows: list[tuple[Node, ...]] = [(Node(0, 0, (False, True, True), (False, False, False)),)]
    for l in range(layers):
        n, last = nodes_in_row(l + 1), l == layers - 1
        growing = l <= 2  # these layers add the scale n - 1, which has no keep source yet
        rows.append(
            tuple(
                Node(
                    l + 1,
                    s,
                    paths=(s > 0 and not last, True, s < SCALES - 1 and not last),
                    sources=(s < n - (2 if growing else 1), not (growing and s == n - 1), s > 0),
                )
                for s in range(n)
            )
        )
    return tuple(rows)


@kept
def path_exists(layers: int) -> Tensor:
    """bool [L+1,4,3]: does the path exist at all.  Callers must not write to it."""
    none = (False, False, False)
    rows = [[*(node.paths for node in row), *[none] * (SCALES - len(row))] for row in build_space(layers)]
    return torch.tensor(rows, dtype=torch.bool, device="cpu")
