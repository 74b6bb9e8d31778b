"""A node of the space: gate, cell, and its outgoing paths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynroute.models import fused
from dynroute.models.cell import Cell
from dynroute.models.config import NetworkConfig
from dynroute.models.gate import Gate
from dynroute.models.layers import ConvNorm
from dynroute.space.routing import is_closed, is_path_open
from dynroute.space.wiring import DOWN, KEEP, UP, Node


class RoutedNode(nn.Module):
    """A node: gate, cell, and its up and down paths (keep has no weights)."""

    train_ops = "reference"  # `dynroute.models.fused.use` sets it
    bn = "all"  # which samples its BatchNorms see in training; `DynamicNetwork.bn` sets it
    one_mode = True  # whether all its BatchNorms but the gate's train, or none; `dynroute.models.freezing` sets it
    place: tuple[int, int] | None = None  # of its samples in their batch; `dynroute.models.fused.placed` sets it

    def __init__(self, node: Node, config: NetworkConfig) -> None:
        super().__init__()
        c = config.channels << node.scale
        self.node = node
        self.gate = Gate(c, node, config.gate, config.small_gate)
        self.cell = Cell(c, config.cell)
        if node.paths[UP]:
            self.up = ConvNorm(c, c // 2, relu=True)
        if node.paths[DOWN]:
            self.down = ConvNorm(c, 2 * c, 1, 2, relu=True)

    def forward(
        self, x: Tensor, alphas: Tensor, keep_prob: float | Tensor = 1.0, bridge: float = 0.0
    ) -> list[Tensor | None]:
        """x [N,C',h,w], alphas [N,3] -> up (before its bilinear x2), keep, down; None where there is no path.

        A sample whose alphas sum to less than 1e-4 passes x itself through keep and nothing through the others; with
        a bridge (training only) x comes in gradually, as the sum falls from `bridge` to 0.  In
        evaluation a path whose own alpha is at most 1e-4 passes zeros; in training every alpha counts.
        """
        if fused.is_on_node(self):
            made = fused.node(self, x, alphas, keep_prob, bridge)
            return [made.up, made.keep, made.down]
        closed = is_closed(alphas)[:, None, None, None]
        if not self.training:
            alphas = torch.where(is_path_open(alphas), alphas, 0.0)
        a = alphas.to(x.dtype)[:, :, None, None, None]
        h = self.cell(x, keep_prob, relu=True)
        if self.training and bridge > 0.0:
            passed = (1.0 - a.sum(1) / bridge).relu()
            out: list[Tensor | None] = [None, h * a[:, KEEP] + x * passed, None]
        else:
            out = [None, torch.where(closed, x, h * a[:, KEEP]), None]
        if self.node.paths[UP]:
            out[UP] = self.up(h) * a[:, UP]  # before the bilinear, which is linear: a quarter of the multiplications
        if self.node.paths[DOWN]:
            out[DOWN] = self.down(h) * a[:, DOWN]
        return out
