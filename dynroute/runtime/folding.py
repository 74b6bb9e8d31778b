"""Folds a network's evaluation-mode BatchNorm into its convolutions and lays the weights out for the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynroute.models.layers import ConvNorm, fold_norm
from dynroute.models.network import DynamicNetwork, RoutedNode
from dynroute.models.space import DOWN, SCALES, UP
from dynroute.ops.network import ACTIVATIONS, TABLE_FIELDS, network_buffer, table_rows
from dynroute.ops.packing import pack_depthwise, pack_shift, pack_weights

ALIGN = 16  # floats: one cache line
# Fields of a node's row; stages 1 to 3 of its cell take 0..8 as depthwise, pointwise, shift.
FIELD_UP, FIELD_DOWN, FIELD_GATE, FIELD_FC = 9, 11, 13, 15
CELL_STACKS = {"sepconv1": 1, "sepconv": 2, "sepconv3": 3}


@dataclass(frozen=True)
class PackedNetwork:
    """A network as the native engine reads it (csrc/cpu/engine).

    Attributes:
        weights: float32 [M], every folded weight in its kernel's layout, each starting on a cache line.
        table: int64 [(L+1)*4 + 6, 17], offsets into `weights`, -1 where there is none: a row per (row, scale), then
            the stem, the decoder's four merges, the predictor.
        config: L, C, stem width, K, activation code, small gate, stages per cell, whether storage is bfloat16.
    """

    weights: Tensor
    table: Tensor
    config: list[int]


class _Packer:
    def __init__(self, rows: int, storage: torch.dtype) -> None:
        self.table = torch.full((rows, TABLE_FIELDS), -1, dtype=torch.int64)
        self._parts: list[Tensor] = []
        self._size = 0
        self._storage = storage

    def put(self, row: int, field: int, values: Tensor) -> None:
        flat = values.detach().to(torch.float32).reshape(-1)
        padding = -flat.numel() % ALIGN
        self.table[row, field] = self._size
        self._parts += [flat, flat.new_zeros(padding)]
        self._size += flat.numel() + padding

    def put_pointwise(self, row: int, field: int, conv: ConvNorm) -> None:
        scale, shift = fold_norm(conv)
        self.put(row, field, pack_weights(conv.weight.detach(), scale, self._storage))
        self.put(row, field + 1, pack_shift(shift))

    def put_conv(self, row: int, field: int, weight: Tensor, scale: Tensor, shift: Tensor) -> None:
        self.put(row, field, pack_weights(weight.detach(), scale, self._storage))
        self.put(row, field + 1, pack_shift(shift.detach()))

    def put_stages(self, row: int, field: int, stages: list[tuple[nn.Conv2d, ConvNorm]]) -> None:
        for i, (depthwise, pointwise) in enumerate(stages):
            self.put(row, field + 3 * i, pack_depthwise(depthwise.weight.detach()))
            self.put_pointwise(row, field + 3 * i + 1, pointwise)

    def weights(self) -> Tensor:
        return torch.cat(self._parts, out=network_buffer(self._size))


def cell_stages(node: RoutedNode) -> list[tuple[nn.Conv2d, ConvNorm]]:
    """The cell's (depthwise, pointwise) pairs."""
    modules = list(node.cell.ops[0].children())
    return list(zip(modules[0::2], modules[1::2], strict=True))  # type: ignore[arg-type]


def why_not_packable(net: DynamicNetwork) -> str | None:
    """None if the native engine runs this network, else the reason."""
    if len(net.config.cell) != 1 or net.config.cell[0] not in CELL_STACKS:
        return f"cell: the native engine runs {', '.join(CELL_STACKS)}, this network has {', '.join(net.config.cell)}"
    return None


def pack(net: DynamicNetwork, storage: torch.dtype = torch.float32) -> PackedNetwork:
    """Snapshot of `net` for the native engine; `storage` is what pointwise weights and maps are kept in.

    Raises:
        ValueError: a cell that the engine does not run.
    """
    reason = why_not_packable(net)
    if reason:
        raise ValueError(reason)
    c = net.config
    nodes = (c.layers + 1) * SCALES
    packer = _Packer(table_rows(c.layers), storage)
    for row, members in enumerate(net.rows()):
        for node in members:
            at = row * SCALES + node.node.scale
            packer.put_stages(at, 0, cell_stages(node))
            if node.node.paths[UP]:
                packer.put_pointwise(at, FIELD_UP, node.up)
            if node.node.paths[DOWN]:
                packer.put_pointwise(at, FIELD_DOWN, node.down)
            if c.gate != "fixed":
                packer.put_pointwise(at, FIELD_GATE, node.gate.conv)
                packer.put(at, FIELD_FC, node.gate.fc.weight)
                packer.put(at, FIELD_FC + 1, node.gate.fc.bias)  # type: ignore[arg-type]
    stem = net.stem
    packer.put_conv(nodes, 0, stem.conv.weight, *fold_norm(stem.conv))
    packer.put_stages(nodes, 2, [(stem.depthwise1, stem.pointwise1), (stem.depthwise2, stem.pointwise2)])
    for s, merge in enumerate(net.decoder.merge):
        packer.put_pointwise(nodes + 1 + s, 0, merge)  # type: ignore[arg-type]
    predictor = net.decoder.predictor
    assert predictor.bias is not None
    packer.put_conv(nodes + 5, 0, predictor.weight, torch.ones_like(predictor.bias), predictor.bias)
    config = [
        c.layers, c.channels, c.stem_width, c.num_classes, ACTIVATIONS.index(c.gate), int(c.small_gate),
        CELL_STACKS[c.cell[0]], int(storage == torch.bfloat16),
    ]  # fmt: skip
    return PackedNetwork(packer.weights(), packer.table, config)
