"""Cells: what a node computes before its paths.  SepConv is the network's; the others are the paper's study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.cost.tables import conv_cost, norm_cost, relu_cost
from dynroute.models import fused
from dynroute.models.layers import ConvNorm, depthwise


class Layer(NamedTuple):
    """A convolution of a cell, at stride 1; without a norm it is a bare depthwise one.

    Attributes:
        channels_in, channels_out, kernel, groups, dilation: as in `nn.Conv2d`.
        norm, relu: what follows it.
    """

    channels_in: int
    channels_out: int
    kernel: int = 1
    groups: int = 1
    dilation: int = 1
    norm: bool = True
    relu: bool = False

    def module(self) -> nn.Conv2d:
        c_in, c_out, kernel, groups, dilation, norm, relu = self
        if not norm:
            return depthwise(c_in, kernel, dilation=dilation)
        return ConvNorm(c_in, c_out, kernel, groups=groups, dilation=dilation, relu=relu)

    def cost(self, h: int, w: int) -> float:
        """On a map of h x w, in MACs."""
        total = conv_cost(self.kernel, self.channels_in, self.channels_out, self.groups, h, w)
        total += norm_cost(self.channels_out, h, w) if self.norm else 0
        return total + (relu_cost(self.channels_out, h, w) if self.relu else 0)


def _sepconv(c: int, stacks: int = 2, kernel: int = 3, dilation: int = 1) -> list[Layer]:
    """`stacks` times depthwise -> pointwise -> BN, with ReLU between stacks and none at the end."""
    layers = []
    for i in range(stacks):
        layers += [Layer(c, c, kernel, c, dilation, norm=False), Layer(c, c, relu=i + 1 < stacks)]
    return layers


def _bottleneck(c: int) -> list[Layer]:
    return [Layer(c, c // 4, relu=True), Layer(c // 4, c // 4, 3, relu=True), Layer(c // 4, c)]


def _mbconv(c: int) -> list[Layer]:
    return [Layer(c, 4 * c, relu=True), Layer(4 * c, 4 * c, 3, 4 * c, relu=True), Layer(4 * c, c)]


_LAYERS: dict[str, Callable[[int], list[Layer]]] = {
    "sepconv": _sepconv,
    "sepconv1": lambda c: _sepconv(c, stacks=1),
    "sepconv3": lambda c: _sepconv(c, stacks=3),
    "sepconv5x5": lambda c: _sepconv(c, kernel=5),
    "sepconv7x7": lambda c: _sepconv(c, kernel=7),
    "dilconv": lambda c: _sepconv(c, stacks=1, dilation=2),
    "bottleneck": _bottleneck,
    "mbconv": _mbconv,
    "basic": lambda c: [Layer(c, c, 3)],
}


def _modules(op: str, channels: int) -> nn.Sequential:
    return nn.Sequential(*(layer.module() for layer in _LAYERS[op](channels)))


CELL_OPS: dict[str, Callable[[int], nn.Sequential]] = {op: partial(_modules, op) for op in _LAYERS}


class Cell(nn.Module):
    """H = X + sum of the cell's operations on X (SPEC, "Node").

    Args:
        channels: C' of the node's scale.
        ops: names from `CELL_OPS`; identity is always there.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it
    one_mode = True  # whether all its BatchNorms train, or none; `dynroute.models.freezing` sets it
    place: tuple[int, int] | None = None  # of its samples in their batch; `dynroute.models.fused.placed` sets it

    def __init__(self, channels: int, ops: Sequence[str] = ("sepconv",)) -> None:
        super().__init__()
        unknown = [op for op in ops if op not in CELL_OPS]
        if unknown or not ops:
            raise ValueError(f"cell: wanted names from {', '.join(CELL_OPS)}, got {', '.join(ops) or 'none'}")
        self.op_names = tuple(ops)
        self.ops = nn.ModuleList(CELL_OPS[op](channels) for op in ops)
        self.is_separable = len(self.ops) == 1 and fused.is_separable(list(self.ops[0].children()))

    def forward(self, x: Tensor, keep_prob: float | Tensor = 1.0, relu: bool = False) -> Tensor:
        """x [N,C',h,w] -> H, or ReLU(H), of the same shape; keep_prob < 1 drops the operations' sum per sample (not
        identity)."""
        factor = fused.drop_factor(x, keep_prob, x.dtype, self.place)
        if self.is_separable and self.one_mode and fused.is_on(self):
            modules = list(self.ops[0].children())  # type: ignore[arg-type]
            if factor is None:
                return fused.sepconv(modules, x, self.train_ops, residual=True, final_relu=relu)
            y = fused.sepconv(modules, x, self.train_ops)
        else:
            y = self.ops[0](x)
            for op in self.ops[1:]:
                y = y + op(x)
        h = x + (y if factor is None else y * factor.view(-1, 1, 1, 1))
        return F.relu(h) if relu else h


def cell_macs(channels: int, ops: tuple[str, ...], height: int, width: int) -> float:
    """Multiply-accumulates of a cell's operations on a map of height x width, as the paper counts; identity is free."""
    return sum(layer.cost(height, width) for op in ops for layer in _LAYERS[op](channels))
