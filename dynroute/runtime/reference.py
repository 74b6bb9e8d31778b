"""The runtime in plain PyTorch: sample by sample, skipping what is closed, counting each convolution as it is done.

Slow and short: what the native executors are compared with, values and counts alike.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.models.layers import ConvNorm, fold_norm, upsample
from dynroute.models.network import DynamicNetwork
from dynroute.models.node import RoutedNode
from dynroute.native.contract import SampleMacs
from dynroute.runtime.results import Executed, Executor
from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, SCALES, UP

GATE, CELL = 0, 1
PART_OF_PATH = {UP: 2, KEEP: 3, DOWN: 4}


class _FoldedConv(nn.Module):
    """A convolution with its BatchNorm folded in, which adds the MACs it did to `meter[0]`."""

    def __init__(self, conv: nn.Conv2d, meter: list[int]) -> None:
        super().__init__()
        self.relu = isinstance(conv, ConvNorm) and conv.relu
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        if isinstance(conv, ConvNorm):
            scale, self.bias = fold_norm(conv)
            self.weight = conv.weight.detach() * scale[:, None, None, None]
        else:
            self.weight = conv.weight.detach()
            self.bias = conv.bias.detach() if conv.bias is not None else None  # type: ignore[assignment]
        self.meter = meter

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]
        self.meter[0] += y.numel() * self.weight[0].numel()
        return F.relu(y) if self.relu else y


def _fold(module: nn.Module, meter: list[int]) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            setattr(module, name, _FoldedConv(child, meter))
        else:
            _fold(child, meter)


class ReferenceExecutor(Executor):
    """Runs each sample alone, as SPEC's per-sample meaning reads."""

    _snapshot = ("net", "_meter")

    def __init__(self, net: DynamicNetwork) -> None:
        self._meter = [0]
        self.net = copy.deepcopy(net).to("cpu", torch.float32).eval()
        _fold(self.net, self._meter)

    def _count(self) -> int:
        done, self._meter[0] = self._meter[0], 0
        return done

    def __call__(self, images: Tensor, gates: Tensor | None, height: int, width: int) -> Executed:
        n, c = images.shape[0], self.net.config
        alphas = torch.zeros(n, c.layers + 1, SCALES, 3)
        nodes = torch.zeros(n, c.layers + 1, SCALES, 5, dtype=torch.int64)
        stem, decoder = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        logits = images.new_empty(n, c.num_classes, height, width)
        self._count()
        for i in range(n):
            x = self.net.stem(images[i : i + 1])
            stem[i] = self._count()
            forced = None if gates is None else gates[i]
            maps = self._route(x, forced, alphas[i], nodes[i])
            logits[i] = self.net.decoder(maps)[0, :, :height, :width]
            decoder[i] = self._count()
        return Executed(logits, alphas, nodes, SampleMacs(stem, decoder, torch.zeros_like(stem)))

    def _route(self, x: Tensor, forced: Tensor | None, alphas: Tensor, nodes: Tensor) -> list[Tensor]:
        """One sample through init cell and grid; fills alphas [L+1,4,3], nodes [L+1,4,5]; the last maps."""
        h, w = x.shape[-2:]
        outputs: list[list[Tensor | None]] = []
        for r, members in enumerate(self.net.rows()):
            fresh: list[list[Tensor | None]] = []
            for node in members:
                s = node.node.scale
                inputs = [x] if r == 0 else _sources(node, outputs)
                if not inputs:  # absent: computes nothing, not even its gate
                    fresh.append([None, None, None])
                    continue
                total = inputs[0] if len(inputs) == 1 else torch.stack(inputs).sum(0)
                fresh.append(
                    self._node(node, total, None if forced is None else forced[r, s], alphas[r, s], nodes[r, s])
                )
            outputs = fresh
        c = self.net.config.channels
        zeros = [x.new_zeros(1, c << s, h >> s, w >> s) for s in range(SCALES)]
        return [zero if out[KEEP] is None else out[KEEP] for out, zero in zip(outputs, zeros, strict=True)]  # type: ignore[misc]

    def _node(
        self, node: RoutedNode, x: Tensor, forced: Tensor | None, alphas: Tensor, counts: Tensor
    ) -> list[Tensor | None]:
        """Outputs of up, keep, down, None where absent; an alpha of 0 from an open node is present, as a zero."""
        alphas.copy_(node.gate(x)[0] if forced is None else forced)
        counts[GATE] = self._count()
        if alphas.sum() < CLOSED_BELOW:  # in float32, like the model: 1e-4 itself must fall on the same side
            return [None, x, None]
        h = F.relu(node.cell(x))
        counts[CELL] = self._count()
        out: list[Tensor | None] = [
            None,
            torch.zeros_like(h) if alphas[KEEP] <= CLOSED_BELOW else h * alphas[KEEP],
            None,
        ]
        for path, conv in ((UP, "up"), (DOWN, "down")):
            if not node.node.paths[path]:
                continue
            if not alphas[path] <= CLOSED_BELOW:  # NaN closes nothing
                y = getattr(node, conv)(h)
                out[path] = (upsample(y, 2) if path == UP else y) * alphas[path]
                counts[PART_OF_PATH[path]] = self._count()
            else:
                n, c, height, width = h.shape
                shape = (n, c // 2, height * 2, width * 2) if path == UP else (n, c * 2, height // 2, width // 2)
                out[path] = h.new_zeros(shape)
        return out


def _sources(node: RoutedNode, outputs: list[list[Tensor | None]]) -> list[Tensor]:
    s = node.node.scale
    wired = ((DOWN, s - 1), (KEEP, s), (UP, s + 1))
    found = [outputs[source][path] for path, source in wired if node.node.sources[path]]
    return [y for y in found if y is not None]
