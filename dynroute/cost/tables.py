"""The paper's cost model, in millions of multiply-accumulates (SPEC, "Cost").

Costs are tables over the space; the expected and the real cost are weighted sums of them, so that any gates tensor,
from the model, a runtime or a file, is priced the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dynroute.space.routing import is_path_open
from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, SCALES, UP, build_space


@dataclass(frozen=True)
class CostTables:
    """Costs in MFLOPs (MACs, as the paper counts) of every part of a network at one padded input size.

    Attributes:
        cell: float64 [L+1,4]; row 0 is 0, the init cell is not counted.
        path: float64 [L+1,4,3] of the paths leaving each node; the last row's keep goes nowhere and is 0.
        gate: float64 [L+1,4]; row 0 is 0.  All 0 for fixed gates.
        stem, decoder: MFLOPs.
        all_open: expected cost of the space with every alpha at 1: the default of the budget's C.
        around: what no alpha changes: all gates, stem, decoder.
    """

    cell: Tensor
    path: Tensor
    gate: Tensor
    stem: float
    decoder: float
    all_open: float
    around: float

    def to(self, device: torch.device) -> CostTables:
        """With the tables that price gates on `device`; the gates' own costs, which no alpha scales, stay."""
        return replace(self, cell=self.cell.to(device), path=self.path.to(device))

    @property
    def all_open_real(self) -> float:
        """Real cost with everything open."""
        return self.all_open + self.around

    def expected(self, gates: Tensor) -> Tensor:
        """gates [N,L+1,4,3] -> [N]: sum of max(alpha)*cell + alpha*path, differentiable."""
        cell, path = self.cell.to(gates), self.path.to(gates)
        return (gates.amax(-1) * cell).sum((1, 2)) + (gates * path).sum((1, 2, 3))

    def open_cost(self, gates: Tensor) -> Tensor:
        """gates [N,L+1,4,3] -> [N]: the space's cost by indicators, [sum alpha > 1e-4] and [alpha > 1e-4]."""
        # SPEC, "Real cost": open is above, not at, the threshold here; NaN closes nothing
        cell_open = ~(gates.sum(-1) <= CLOSED_BELOW)
        path_open = is_path_open(gates)
        cell, path = self.cell.to(gates.device), self.path.to(gates.device)
        return (cell_open * cell).sum((1, 2)) + (path_open * path).sum((1, 2, 3))

    def real(self, gates: Tensor) -> Tensor:
        """gates [N,L+1,4,3] -> float64 [N]: `open_cost` + every grid node's gate + stem + decoder."""
        return self.open_cost(gates) + self.around


def conv_cost(kernel: int, cin: int, cout: int, groups: int, h: int, w: int, stride: int = 1) -> float:
    """k*k*(Cin/groups)*Cout*(h//stride)*(w//stride), bias not counted."""
    return kernel * kernel * (cin // groups) * cout * (h // stride) * (w // stride)


def norm_cost(channels: int, h: int, w: int) -> float:
    return 2.0 * channels * h * w


def relu_cost(channels: int, h: int, w: int) -> float:
    return float(channels * h * w)


def _stem_cost(in_channels: int, channels: int, width: int, h: int, w: int) -> float:
    h2, w2, h4, w4 = h // 2, w // 2, h // 4, w // 4
    total = conv_cost(3, in_channels, width, 1, h, w, 2) + norm_cost(width, h2, w2) + relu_cost(width, h2, w2)
    for cout, stride, oh, ow in ((width, 1, h2, w2), (channels, 2, h4, w4)):
        total += conv_cost(3, width, width, width, h2, w2, stride) + conv_cost(1, width, cout, 1, oh, ow)
        total += norm_cost(cout, oh, ow) + relu_cost(cout, oh, ow)
    return total


def _decoder_cost(channels: int, num_classes: int, h: int, w: int, published: bool) -> float:
    total = 0.0
    for s in range(SCALES):
        cin, cout, sh, sw = channels << s, channels << max(s - 1, 0), h >> (s + 2), w >> (s + 2)
        if published:  # the published code passes the height for the width
            sw = sh
        total += conv_cost(1, cin, cout, 1, sh, sw) + norm_cost(cout, sh, sw) + relu_cost(cout, sh, sw)
        if s == 0:
            total += conv_cost(3, channels, num_classes, 1, sh, sw)
    return total


class _Macs(NamedTuple):
    """Multiply-accumulates by [row][scale], of paths by [row][scale][path]: numbers, which are kept, as tensors made
    under fake tensors or a tracer may not be."""

    cell: list[list[float]]
    path: list[list[list[float]]]
    gate: list[list[float]]


@lru_cache(maxsize=64)
def _space_macs(
    layers: int, channels: int, height: int, width: int, cell_macs: tuple[float, ...], small_gate: bool, fixed: bool
) -> _Macs:
    cells = [[0.0] * SCALES for _ in range(layers + 1)]
    gates = [[0.0] * SCALES for _ in range(layers + 1)]
    paths = [[[0.0] * 3 for _ in range(SCALES)] for _ in range(layers + 1)]
    for nodes in build_space(layers):
        for node in nodes:
            r, s = node.row, node.scale
            c, h, w = channels << s, height >> (s + 2), width >> (s + 2)
            if r:
                cells[r][s] = cell_macs[s]
                if not fixed:
                    gh, gw = (h // 4, w // 4) if small_gate else (h, w)
                    mid = c // 2
                    gates[r][s] = (
                        conv_cost(1, c, mid, 1, gh, gw)
                        + norm_cost(mid, gh, gw)
                        + 2 * relu_cost(mid, gh, gw)  # ReLU and pool
                        + mid * sum(node.paths)
                    )
            if node.paths[UP]:
                paths[r][s][UP] = (
                    relu_cost(c, h, w) + conv_cost(1, c, c // 2, 1, h, w) + norm_cost(c // 2, h, w)
                ) + relu_cost(c // 2, h, w)
            if node.paths[DOWN]:
                paths[r][s][DOWN] = (
                    relu_cost(c, h, w) + conv_cost(1, c, 2 * c, 1, h, w, 2) + norm_cost(2 * c, h // 2, w // 2)
                ) + relu_cost(2 * c, h // 2, w // 2)
            if r < layers:
                paths[r][s][KEEP] = relu_cost(c, h, w)
    return _Macs(cells, paths, gates)


def cost_tables(
    layers: int,
    channels: int,
    num_classes: int,
    height: int,
    width: int,
    cell_macs: tuple[float, ...],
    *,
    small_gate: bool = False,
    fixed_gates: bool = False,
    stem_width: int = 64,
    in_channels: int = 3,
    published_decoder: bool = False,
) -> CostTables:
    """Cost tables of a network at a padded input of height x width.

    Args:
        cell_macs: of a cell at each scale, 1/4 to 1/32, as the paper counts.
        in_channels: of the images.
        published_decoder: count the decoder with its height for its width, as the published code does.
    """
    macs = _space_macs(layers, channels, height, width, cell_macs, small_gate, fixed_gates)
    million = 1e-6
    stem = _stem_cost(in_channels, channels, stem_width, height, width) * million
    decoder = _decoder_cost(channels, num_classes, height, width, published_decoder) * million
    cell, path, gate = (torch.tensor(part, dtype=torch.float64, device="cpu") * million for part in macs)
    space = [*_values(macs.cell), *(value for row in macs.path for value in _values(row))]
    return CostTables(
        cell,
        path,
        gate,
        stem,
        decoder,
        all_open=math.fsum(space) * million,
        around=math.fsum(_values(macs.gate)) * million + stem + decoder,
    )


def _values(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def space_macs(nodes: Tensor) -> Tensor:
    """executed_nodes [...,L+1,4,5] -> [...]: cells of the grid and all paths, what the budget is about; no gates, no
    init cell (row 0)."""
    return nodes[..., 1:].sum((-1, -2, -3)) - nodes[..., 0, :, 1].sum(-1)
