"""The gate: from a node's input to one alpha per path and sample (SPEC, "Node")."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.models import fused
from dynroute.models.layers import ConvNorm
from dynroute.native.contract import ACTIVATIONS
from dynroute.space.wiring import KEEP, Node

GATE_BIAS = 1.5


def activate(logits: Tensor, activation: str) -> Tensor:
    """[N,g] -> alphas [N,g]: max(0, tanh), sigmoid, or softmax over the node's paths."""
    if activation == "tanh":
        return torch.tanh(logits).relu()
    if activation == "sigmoid":
        return torch.sigmoid(logits)
    return torch.softmax(logits, dim=1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class Gate(nn.Module):
    """G = conv1x1(GAP(ReLU(BN(conv1x1(X'))))), X' = X or, with the small gate, bilinear x1/4 of X.

    Args:
        channels: C' of the node's scale.
        node: gives the paths, hence the number of alphas.
        activation: one of `ACTIVATIONS`; "fixed" has no weights and returns 1 for every path.
        small: compute on a quarter-size input.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it

    def __init__(self, channels: int, node: Node, activation: str = "tanh", small: bool = False) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"gate: wanted one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.node, self.activation, self.small = node, activation, small
        if activation != "fixed":
            self.conv = ConvNorm(channels, channels // 2, relu=True)
            self.fc = nn.Conv2d(channels // 2, len(node.published_order), 1)

    def reset_bias(self) -> None:
        """Start open (SPEC: bias 1.5)."""
        if self.activation != "fixed":
            nn.init.constant_(self.fc.bias, GATE_BIAS)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C',h,w] -> alphas [N,3] in the order up, keep, down; 0 where the path does not exist.

        They are float32, under autocast too, and float64 where the gate is.
        """
        order = self.node.published_order
        if self.activation != "fixed" and fused.is_on(self) and self.conv.is_pointwise:
            return _at_least_float32(fused.gate(self, x, order, self.train_ops))
        if self.activation == "fixed":
            alphas = x.new_ones(x.shape[0], len(order))
        else:
            if self.small:
                x = F.interpolate(
                    x, scale_factor=0.25, mode="bilinear", align_corners=False, recompute_scale_factor=False
                )
            pooled = self.conv(x).mean(dim=(2, 3), keepdim=True)
            alphas = activate(_at_least_float32(self.fc(pooled).flatten(1)), self.activation)
        columns = [alphas.new_zeros(x.shape[0]) for _ in range(3)]
        for i, path in enumerate(order):
            columns[path] = alphas[:, i]
        assert order[0] == KEEP
        return torch.stack(columns, dim=1)
