"""Folds a network's evaluation-mode BatchNorm into its convolutions and lays the weights out for the kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dynroute.models.layers import ConvNorm, fold_norm
from dynroute.models.network import DynamicNetwork
from dynroute.models.node import RoutedNode
from dynroute.native.contract import (
    ACTIVATIONS,
    ConfigNumbers,
    WeightField,
    merge_row,
    node_row,
    predictor_row,
    stem_row,
    table_rows,
)
from dynroute.native.network import network_buffer
from dynroute.runtime.weights.layouts import MATRIX, pack_depthwise, pack_matrix, pack_shift, pack_weights
from dynroute.space.wiring import DOWN, UP

CELL_STACKS = {"sepconv1": 1, "sepconv": 2, "sepconv3": 3}


@dataclass(frozen=True)
class PackedNetwork:
    """A network as native code reads it (csrc/contract/network.h).

    Attributes:
        weights: every folded weight in its kernel's layout, one after the other.
        table: int64 [table_rows(L), WeightField.TABLE_FIELDS], offsets into `weights`, -1 where there is none: a row
            per (row, scale), then the stem, the decoder's four merges, the predictor.
        config: the network's, as native code is told of it.
    """

    weights: Tensor
    table: Tensor
    config: ConfigNumbers


class Layout(ABC):
    """How a device wants its weights.

    Args:
        storage: type of pointwise weights; everything else is float32.

    Attributes:
        align: bytes; each weight begins at a multiple.
        unit: type of the blob, whose elements offsets count.
    """

    align: ClassVar[int]
    unit: ClassVar[torch.dtype]

    def __init__(self, storage: torch.dtype) -> None:
        self.storage = storage

    @abstractmethod
    def pointwise(self, weight: Tensor, scale: Tensor) -> Tensor:
        """[Cout, Cin, k, k] times scale [Cout], in `storage`."""

    @abstractmethod
    def shift(self, shift: Tensor) -> Tensor:
        """float32 [Cout], padded as far as kernels read."""


class CpuLayout(Layout):
    """Panels of 16 output channels, or tiles with AMX; each weight on a cache line of its own."""

    align, unit = 64, torch.float32

    def pointwise(self, weight: Tensor, scale: Tensor) -> Tensor:
        return pack_weights(weight, scale, self.storage)

    def shift(self, shift: Tensor) -> Tensor:
        return pack_shift(shift)


class CudaLayout(Layout):
    """Matrices with sides in multiples of 32."""

    align, unit = 256, torch.uint8

    def pointwise(self, weight: Tensor, scale: Tensor) -> Tensor:
        return pack_matrix(weight, scale, self.storage)

    def shift(self, shift: Tensor) -> Tensor:
        return pack_shift(shift, MATRIX)


class _Packer:
    def __init__(self, rows: int, layout: Layout) -> None:
        self.table = torch.full((rows, WeightField.TABLE_FIELDS), -1, dtype=torch.int64)
        self._layout = layout
        self._parts: list[Tensor] = []
        self._bytes = 0

    def put(self, row: int, field: int, values: Tensor) -> None:
        flat = values.detach().cpu().contiguous().view(-1).view(torch.uint8)
        padding = -flat.numel() % self._layout.align
        self.table[row, field] = self._bytes // self._layout.unit.itemsize
        self._parts += [flat, flat.new_zeros(padding)]
        self._bytes += flat.numel() + padding

    def put_conv(self, row: int, field: int, weight: Tensor, scale: Tensor, shift: Tensor) -> None:
        self.put(row, field, self._layout.pointwise(weight.detach().float(), scale.float()))
        self.put(row, field + 1, self._layout.shift(shift.detach().float()))

    def put_norm(self, row: int, field: int, conv: ConvNorm) -> None:
        self.put_conv(row, field, conv.weight, *fold_norm(conv))

    def put_stages(self, row: int, field: int, stages: list[tuple[nn.Conv2d, ConvNorm]]) -> None:
        for i, (depthwise, pointwise) in enumerate(stages):
            stage = field + i * WeightField.STAGE_FIELDS
            self.put(row, stage + WeightField.DEPTHWISE, pack_depthwise(depthwise.weight.detach().float()))
            self.put_norm(row, stage + WeightField.POINTWISE, pointwise)

    def weights(self) -> Tensor:
        blob = network_buffer(self._bytes // 4)
        torch.cat(self._parts, out=blob.view(torch.uint8))
        return blob.view(self._layout.unit)


def cell_stages(node: RoutedNode) -> list[tuple[nn.Conv2d, ConvNorm]]:
    """The cell's (depthwise, pointwise) pairs."""
    modules = list(node.cell.ops[0].children())
    return list(zip(modules[0::2], modules[1::2], strict=True))  # type: ignore[arg-type]


def why_not_packable(net: DynamicNetwork) -> str | None:
    """None if the native engine runs this network, else the reason."""
    if len(net.config.cell) != 1 or net.config.cell[0] not in CELL_STACKS:
        return f"cell: the native engine runs {', '.join(CELL_STACKS)}, this network has {', '.join(net.config.cell)}"
    return None


def pack(net: DynamicNetwork, layout: Layout) -> PackedNetwork:
    """Snapshot of `net`, on the CPU.

    Raises:
        ValueError: a cell that the engine does not run.
    """
    reason = why_not_packable(net)
    if reason:
        raise ValueError(reason)
    c = net.config
    packer = _Packer(table_rows(c.layers), layout)
    for row, members in enumerate(net.rows()):
        for node in members:
            at = node_row(row, node.node.scale)
            packer.put_stages(at, WeightField.CELL_STAGES, cell_stages(node))
            if node.node.paths[UP]:
                packer.put_norm(at, WeightField.UP_CONV, node.up)
            if node.node.paths[DOWN]:
                packer.put_norm(at, WeightField.DOWN_CONV, node.down)
            if c.gate != "fixed":
                packer.put_norm(at, WeightField.GATE_CONV, node.gate.conv)
                fc = node.gate.fc
                assert fc.bias is not None
                packer.put(at, WeightField.GATE_FC, fc.weight.float())
                packer.put(at, WeightField.GATE_FC + 1, fc.bias.float())
    stem = net.stem
    at = stem_row(c.layers)
    packer.put_norm(at, WeightField.STEM_CONV, stem.conv)
    packer.put_stages(
        at, WeightField.STEM_STAGES, [(stem.depthwise1, stem.pointwise1), (stem.depthwise2, stem.pointwise2)]
    )
    for s, merge in enumerate(net.decoder.merge):
        packer.put_norm(merge_row(c.layers, s), WeightField.ONLY_CONV, merge)  # type: ignore[arg-type]
    predictor = net.decoder.predictor
    assert predictor.bias is not None
    ones = torch.ones_like(predictor.bias)
    packer.put_conv(predictor_row(c.layers), WeightField.ONLY_CONV, predictor.weight, ones, predictor.bias)
    config = ConfigNumbers(
        layers=c.layers,
        channels=c.channels,
        stem_width=c.stem_width,
        num_classes=c.num_classes,
        activation=ACTIVATIONS.index(c.gate),
        small_gate=int(c.small_gate),
        cell_stacks=CELL_STACKS[c.cell[0]],
        bf16_storage=int(layout.storage == torch.bfloat16),
        in_channels=c.in_channels,
    )
    return PackedNetwork(packer.weights(), packer.table, config)
