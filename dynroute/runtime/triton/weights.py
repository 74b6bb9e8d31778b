"""A network's weights on the device, as the Triton kernels read them: BatchNorm as scale and shift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dynroute.models.layers import ConvNorm, fold_norm
from dynroute.models.network import DynamicNetwork
from dynroute.models.node import RoutedNode
from dynroute.ops.triton.launch import by_taps
from dynroute.runtime.weights.pack import cell_stages
from dynroute.space.wiring import DOWN, UP


class Product(NamedTuple):
    """A dense convolution as a product, then y * scale + shift.

    Attributes:
        weight: [Cout, k * k * Cin], in the storage's type; inputs are numbered (ky * k + kx) * Cin + c.
        scale, shift: float32 [Cout].
    """

    weight: Tensor
    scale: Tensor
    shift: Tensor


class Stage(NamedTuple):
    """A depthwise convolution, float32 [9, C], and the product behind it."""

    depthwise: Tensor
    product: Product


class GateWeights(NamedTuple):
    """`fc_weight` float32 [3, M] and `fc_bias` [3], in the order of paths; 0 where there is none."""

    conv: Product
    fc_weight: Tensor
    fc_bias: Tensor


class NodeWeights(NamedTuple):
    """None where there is no such path, or the gate is fixed."""

    cell: list[Stage]
    gate: GateWeights | None
    up: Product | None
    down: Product | None


class Weights:
    """Snapshot of a network's weights.

    Args:
        net: the network; what is kept is a copy.
        storage: of products' weights; everything else is float32.
        device: where they will be.
    """

    def __init__(self, net: DynamicNetwork, storage: torch.dtype, device: torch.device) -> None:
        self._storage, self._device = storage, device
        stem = net.stem
        self.stem_conv = self._norm(stem.conv)
        pairs = ((stem.depthwise1, stem.pointwise1), (stem.depthwise2, stem.pointwise2))
        self.stem_stages = [self._stage(*pair) for pair in pairs]
        self.nodes = [[self._node(node) for node in members] for members in net.rows()]
        self.merges = [self._norm(merge) for merge in net.decoder.merge]  # type: ignore[arg-type]
        predictor = net.decoder.predictor
        assert predictor.bias is not None
        self.predictor = self._product(predictor, torch.ones_like(predictor.bias), predictor.bias)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that is kept."""
        return _leaves((self.stem_conv, self.stem_stages, self.nodes, self.merges, self.predictor))

    def _put(self, values: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return values.detach().to(self._device, dtype, copy=True).contiguous()

    def _product(self, conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> Product:
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)
        return Product(self._put(weight, self._storage), self._put(scale), self._put(shift))

    def _norm(self, conv: ConvNorm) -> Product:
        return self._product(conv, *fold_norm(conv))

    def _stage(self, depthwise: nn.Conv2d, pointwise: ConvNorm) -> Stage:
        return Stage(self._put(by_taps(depthwise.weight)), self._norm(pointwise))

    def _node(self, node: RoutedNode) -> NodeWeights:
        gate = None
        if node.gate.activation != "fixed":
            fc, order = node.gate.fc, list(node.node.published_order)
            assert fc.bias is not None
            weight, bias = fc.weight.new_zeros(3, fc.in_channels), fc.bias.new_zeros(3)
            weight[order], bias[order] = fc.weight.detach().flatten(1), fc.bias.detach()
            gate = GateWeights(self._norm(node.gate.conv), self._put(weight), self._put(bias))
        return NodeWeights(
            [self._stage(*pair) for pair in cell_stages(node)],
            gate,
            self._norm(node.up) if node.node.paths[UP] else None,
            self._norm(node.down) if node.node.paths[DOWN] else None,
        )


def _leaves(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif values is not None:
        for value in values:
            yield from _leaves(value)
