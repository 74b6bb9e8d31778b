"""Cells: what a node computes before its paths.  SepConv is the network's; the others are the paper's study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.models import fused
from dynroute.models.layers import ConvNorm, depthwise, module_cost


def _sepconv(c: int, stacks: int = 2, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """`stacks` times depthwise -> pointwise -> BN, with ReLU between stacks and none at the end."""
    layers: list[nn.Module] = []
    for i in range(stacks):
        layers += [depthwise(c, kernel, dilation=dilation), ConvNorm(c, c, relu=i + 1 < stacks)]
    return nn.Sequential(*layers)


def _bottleneck(c: int) -> nn.Sequential:
    return nn.Sequential(ConvNorm(c, c // 4, relu=True), ConvNorm(c // 4, c // 4, 3, relu=True), ConvNorm(c // 4, c))


def _mbconv(c: int) -> nn.Sequential:
    return nn.Sequential(
        ConvNorm(c, 4 * c, relu=True), ConvNorm(4 * c, 4 * c, 3, groups=4 * c, relu=True), ConvNorm(4 * c, c)
    )


CELL_OPS: dict[str, Callable[[int], nn.Sequential]] = {
    "sepconv": _sepconv,
    "sepconv1": lambda c: _sepconv(c, stacks=1),
    "sepconv3": lambda c: _sepconv(c, stacks=3),
    "sepconv5x5": lambda c: _sepconv(c, kernel=5),
    "sepconv7x7": lambda c: _sepconv(c, kernel=7),
    "dilconv": lambda c: _sepconv(c, stacks=1, dilation=2),
    "bottleneck": _bottleneck,
    "mbconv": _mbconv,
    "basic": lambda c: nn.Sequential(ConvNorm(c, c, 3)),
}


class Cell(nn.Module):
    """H = X + sum of the cell's operations on X (SPEC, "Node").

    Args:
        channels: C' of the node's scale.
        ops: names from `CELL_OPS`; identity is always there.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it

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
        factor = fused.drop_factor(x, keep_prob, x.dtype)
        if self.is_separable and fused.is_on(self):
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


@lru_cache(maxsize=256)
def cell_macs(channels: int, ops: tuple[str, ...], height: int, width: int) -> float:
    """Multiply-accumulates of a cell's operations on a map of height x width, as the paper counts; identity is free."""
    with torch.device("meta"):
        return module_cost(Cell(channels, ops), height, width)
