"""The operators of a training step, forward and backward apart, against the modules of plain PyTorch in channels_last.

The forward records what its backward needs; the backward is of one recorded forward, again and again. Shapes are those
of L16 C=64 on 2x256x256.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import OURS, SEED, Case, Settings, benchmark
from dynroute import ops
from dynroute.models.config import NetworkConfig
from dynroute.models.layers import upsample
from dynroute.models.node import RoutedNode
from dynroute.space.wiring import build_space

LAYERS, LAYER = 6, 4  # a row of the space that has all four scales, with all their paths
SHAPES: list[dict[str, Any]] = [
    {"n": 2, "c": 64 << s, "h": 64 >> s, "w": 64 >> s, "scale": s, "backward": backward}
    for s in range(4)
    for backward in (False, True)
]
TINY = [{"n": 2, "c": 16, "h": 8, "w": 8, "scale": 1, "backward": backward} for backward in (False, True)]
LOSS_SHAPES = [{"n": 2, "k": 19, "h": 64, "w": 64}]

Run = Callable[[], "tuple[list[Tensor], list[Tensor]]"]  # a forward: its outputs, and what has gradients


def node_of(c: int, scale: int) -> RoutedNode:
    """A node in training, with channels_last weights."""
    torch.manual_seed(SEED)
    node = RoutedNode(build_space(LAYERS)[LAYER][scale], NetworkConfig(layers=LAYERS, channels=c >> scale))
    return node.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def choose(module: nn.Module, choice: str) -> None:
    """Has the module compute by these operators."""
    for part in module.modules():
        if hasattr(part, "train_ops"):
            part.train_ops = choice  # type: ignore[assignment]


def noise(*shape: int) -> Tensor:
    """Normal numbers in channels_last, with a gradient."""
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last).requires_grad_()


def case_of(runs: dict[str, Run], backward: bool) -> Case:
    """Ours and eager; errors: of the outputs, or of the gradients."""
    jobs: dict[str, Callable[[], object]] = {}
    results: dict[str, list[Tensor]] = {}
    for name, run in runs.items():
        outputs, leaves = run()
        torch.manual_seed(SEED)
        grads = [torch.randn_like(out) for out in outputs]

        def differentiate(outputs: Any = outputs, leaves: Any = leaves, grads: Any = grads) -> tuple[Tensor, ...]:
            with torch.inference_mode(False):
                return torch.autograd.grad(outputs, leaves, grads, retain_graph=True)

        def forward(run: Run = run) -> object:
            with torch.inference_mode(False), torch.enable_grad():
                return run()

        jobs[name] = differentiate if backward else forward
        results[name] = list(differentiate()) if backward else [out.detach() for out in outputs]
    errors = [
        float((a - e).abs().max() / e.abs().max().clamp(min=1e-3))
        for a, e in zip(results[OURS], results[peers.EAGER_NHWC])
    ]
    return Case(jobs, errors={OURS: max(errors)})


def by_both(module: nn.Module, call: Callable[[Any], list[Tensor]], inputs: list[Tensor]) -> dict[str, Run]:
    """Forwards of copies of a module, on fused operators and on plain PyTorch."""
    runs: dict[str, Run] = {}
    for name, choice in ((OURS, "cpu"), (peers.EAGER_NHWC, "reference")):
        own = copy.deepcopy(module)
        choose(own, choice)
        leaves = [*inputs, *(p for p in own.parameters() if p.requires_grad)]
        runs[name] = lambda own=own, leaves=leaves: (call(own), leaves)  # type: ignore[misc]
    return runs


@benchmark("train_ops", SHAPES, SHAPES[:2], TINY)
def node(settings: Settings, n: int, c: int, h: int, w: int, scale: int, backward: bool) -> Case:
    """A node's cell, and what its paths make of it."""
    with torch.inference_mode(False), torch.enable_grad():
        module = node_of(c, scale)
        for name in ("conv", "fc"):  # the gate takes no part
            getattr(module.gate, name).requires_grad_(False)
        x, alphas = noise(n, c, h, w), (torch.rand(n, 3) * 0.5 + 0.25).requires_grad_()
        runs = by_both(module, lambda own: [out for out in own(x, alphas) if out is not None], [x, alphas])
        return case_of(runs, backward)


@benchmark("train_ops", SHAPES, SHAPES[:2], TINY)
def gate(settings: Settings, n: int, c: int, h: int, w: int, scale: int, backward: bool) -> Case:
    """A node's gate."""
    with torch.inference_mode(False), torch.enable_grad():
        module = node_of(c, scale).gate
        x = noise(n, c, h, w)
        return case_of(by_both(module, lambda own: [own(x)], [x]), backward)


@benchmark("train_ops", SHAPES[:6], SHAPES[:2], TINY)
def aggregate(settings: Settings, n: int, c: int, h: int, w: int, scale: int, backward: bool) -> Case:
    """The sum of a node's sources, which come weighted."""
    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(SEED)
        down, keep, up = noise(n, c, h, w), noise(n, c, h, w), noise(n, c, h // 2, w // 2)
        runs: dict[str, Run] = {
            OURS: lambda: ([ops.aggregate(down, keep, up, backend="cpu")], [down, keep, up]),
            peers.EAGER_NHWC: lambda: ([down + keep + upsample(up, 2)], [down, keep, up]),
        }
        return case_of(runs, backward)


@benchmark("train_ops", LOSS_SHAPES, LOSS_SHAPES, [{"n": 1, "k": 5, "h": 8, "w": 8}])
def loss(settings: Settings, n: int, k: int, h: int, w: int) -> Case:
    """Upsampled cross entropy, forward and backward together: the fused one makes its gradient in the forward."""
    with torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(SEED)
        logits, labels = noise(n, k, h, w), torch.randint(0, k, (n, 4 * h, 4 * w))

        def both(fused: bool) -> Callable[[], Tensor]:
            def job() -> Tensor:
                with torch.inference_mode(False), torch.enable_grad():
                    if fused:
                        total = ops.upsampled_cross_entropy(logits, labels, backend="cpu")
                    else:
                        total = F.cross_entropy(upsample(logits, 4), labels, reduction="sum")
                    return torch.autograd.grad(total, logits)[0]

            return job

        jobs = {OURS: both(True), peers.EAGER_NHWC: both(False)}
        got, wanted = jobs[OURS](), jobs[peers.EAGER_NHWC]()
        return Case(dict(jobs), errors={OURS: float((got - wanted).abs().max() / wanted.abs().max())})
