"""Each operator at the shapes of the L16 C=64 network on 512x1024; and the check that none is slower than eager.

Eager PyTorch is given channels_last inputs and weights with BatchNorm folded in: its best. Rates count what is
compulsory: multiply-accumulates at output sizes, inputs and weights read once, outputs written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.harness import OURS, Case, Settings, benchmark, number
from dynroute import ops
from dynroute.models.gate import GATE_BIAS

conv, relu, interpolate = nn.functional.conv2d, torch.relu, nn.functional.interpolate
FLOAT = 4
# The published shapes: C * 2^s channels on (H/4, W/4) / 2^s.
SCALE_SHAPES = [{"n": 1, "c": 64 << s, "h": 128 >> s, "w": 256 >> s} for s in range(4)]
TINY = {"n": 2, "c": 32, "h": 16, "w": 16}
CHECK_SIZES = {32: (64, 128), 64: (64, 128), 128: (32, 64), 256: (16, 32), 512: (8, 16)}
CHECK = [{"n": n, "c": c, "h": h, "w": w} for c, (h, w) in CHECK_SIZES.items() for n in (1, 8)]
CHECK_QUICK = [shape for shape in CHECK if shape["c"] in (32, 256) and shape["n"] == 1]
CHAIN = 4


def register(
    full: Sequence[dict[str, Any]], quick: Sequence[dict[str, Any]] | None = None, check: dict[str, Any] | None = None
) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Registers an operator at the network's shapes, and at the check's with the bar of 1 against eager."""

    def both(make: Callable[..., Case]) -> Callable[..., Case]:
        benchmark("ops", full, quick, [TINY])(make)

        def checked(settings: Settings, **shape: Any) -> Case:
            case = make(settings, **(check or {}), **shape)
            case.bars = {peers.EAGER_NHWC: 1.0}
            return case

        benchmark("check", CHECK, CHECK_QUICK, [TINY], name=make.__name__)(checked)
        return make

    return both


def nhwc(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers in channels_last."""
    return (torch.randn(*shape) * scale).contiguous(memory_format=torch.channels_last)


def random_pointwise(out: int, c: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight [out,c,1,1], scale and shift [out], and the weight with the scale in it, for eager."""
    weight, scale, shift = torch.randn(out, c, 1, 1) / c**0.5, torch.rand(out) + 0.5, torch.randn(out)
    folded = (weight * scale.view(-1, 1, 1, 1)).to(memory_format=torch.channels_last)
    return weight, scale, shift, folded


def case_of(
    ours: Callable[[], Tensor], eager: Callable[[], Tensor], weights: int, *inputs: Tensor, calls: int = 1
) -> Case:
    """Ours against eager; `weights` are floats read, `calls` the operator calls within one of ours.

    Ours must agree with eager: its own tests say what it is exactly, this says that both did the same work.
    """
    wanted = eager()
    found = peers.Peers()
    peers.admit(found, OURS, ours, wanted)
    jobs = {**found.jobs, peers.EAGER_NHWC: eager}
    ours()
    macs = torch.ops.dynroute.last_macs()[0] * calls
    moved = calls * (sum(x.numel() for x in inputs) + wanted.numel()) + weights
    return Case(
        jobs, number("counted", macs), number("computed", moved * FLOAT), errors=found.errors, absent=found.absent
    )


class Cells(nn.Module):
    """A chain of cells with folded BatchNorm, for exporting: X -> ReLU(X + pw(dw(ReLU(pw(dw(X)))))), each with its own
    weights. A chain, because a runtime with a layout of its own would pay for two conversions around a single one."""

    def __init__(self, channels: int, chain: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for _ in range(2 * chain):
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.stages.append(nn.Sequential(depthwise, nn.Conv2d(channels, channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """x [N,C,h,w] -> the same shape."""
        for first, second in zip(self.stages[0::2], self.stages[1::2]):
            x = relu(second(relu(first(x))) + x)
        return x


@register([{**shape, "chain": CHAIN} for shape in [*SCALE_SHAPES, {"n": 1, "c": 64, "h": 256, "w": 512}]],
          check={"chain": 1})  # fmt: skip
def cell(settings: Settings, n: int, c: int, h: int, w: int, chain: int = CHAIN) -> Case:
    """The cell, both stages with the residual."""
    with torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(0)
        module = Cells(c, chain).eval().requires_grad_(False)
    x = nhwc(n, c, h, w)
    ready = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ones = torch.ones(c)
    stages = [(stage[0].weight, stage[1].weight, stage[1].bias) for stage in module.stages]  # type: ignore[index]

    def ours() -> Tensor:
        y = x
        for (dw1, pw1, b1), (dw2, pw2, b2) in zip(stages[0::2], stages[1::2]):
            y = ops.sepconv(y, [dw1, dw2], [pw1, pw2], [ones, ones], [b1, b2], None, 1, True, True, backend="cpu")
        return y

    case = case_of(ours, lambda: ready(x), chain * 2 * c * (c + 10), x, calls=chain)
    if chain > 1:
        others = peers.make_peers(
            module, x, ready(x), settings,
            {name: "measured on the whole network" for name in (peers.EAGER, peers.COMPILED, peers.OPENVINO_BF16)}
            | {peers.EAGER_NHWC: "is there already"},
        )  # fmt: skip
        case.jobs |= others.jobs
        case.errors |= others.errors
        case.absent |= {k: v for k, v in others.absent.items() if k != peers.EAGER_NHWC}
    return case


@register(SCALE_SHAPES[:3])
def stage_stride2(settings: Settings, n: int, c: int, h: int, w: int) -> Case:
    """One separable stage with stride 2, as in the stem."""
    x, depthwise = nhwc(n, c, h, w), torch.randn(c, 1, 3, 3) / 3
    weight, scale, shift, folded = random_pointwise(c, c)

    def eager() -> Tensor:
        return relu(conv(conv(x, depthwise, padding=1, groups=c, stride=2), folded, shift))

    def ours() -> Tensor:
        return ops.sepconv(x, [depthwise], [weight], [scale], [shift], None, 2, False, True, backend="cpu")

    return case_of(ours, eager, c * (c + 10), x)


@register(SCALE_SHAPES[1:])
def transform_up(settings: Settings, n: int, c: int, h: int, w: int) -> Case:
    """The path to the next larger map, before its bilinear."""
    return _transform(n, c, h, w, c // 2, 1)


@register(SCALE_SHAPES[:3])
def transform_down(settings: Settings, n: int, c: int, h: int, w: int) -> Case:
    """The path to the next smaller map. It reads every second pixel of every second row."""
    return _transform(n, c, h, w, 2 * c, 2)


def _transform(n: int, c: int, h: int, w: int, out: int, stride: int) -> Case:
    x = nhwc(n, c, h, w)
    weight, scale, shift, folded = random_pointwise(out, c)
    return case_of(
        lambda: ops.transform(x, weight, scale, shift, None, stride, backend="cpu"),
        lambda: relu(conv(relu(x), folded, shift, stride)),
        out * (c + 1),
        x[..., ::stride, ::stride],
    )


@register(SCALE_SHAPES)
def gate(settings: Settings, n: int, c: int, h: int, w: int) -> Case:
    """The full gate: a 1x1 over the whole map, then a mean."""
    return _gate(n, c, h, w, small=False)


@register(SCALE_SHAPES)
def gate_small(settings: Settings, n: int, c: int, h: int, w: int) -> Case:
    """The gate over a bilinear quarter of the map. It reads 4 of 16 pixels."""
    return _gate(n, c, h, w, small=True)


def _gate(n: int, c: int, h: int, w: int, small: bool) -> Case:
    x = nhwc(n, c, h, w)
    weight, scale, shift, folded = random_pointwise(c // 2, c)
    fc_weight, fc_bias = torch.randn(3, c // 2, 1, 1) / c, torch.full((3,), GATE_BIAS)

    def eager() -> Tensor:
        y = x
        if small:
            y = interpolate(x, scale_factor=0.25, mode="bilinear", recompute_scale_factor=False)
        pooled = relu(conv(y, folded, shift)).mean((2, 3), keepdim=True)
        return conv(pooled, fc_weight, fc_bias).tanh().relu().flatten(1)

    def ours() -> Tensor:
        return ops.gate(x, weight, scale, shift, fc_weight, fc_bias, small=small, backend="cpu")

    return case_of(ours, eager, c // 2 * (c + 1), x[..., ::2, ::2] if small else x)


@register(SCALE_SHAPES[:3])
def aggregate(settings: Settings, n: int, c: int, h: int, w: int) -> Case:
    """Three weighted sources into one map, one of them through a bilinear x2. It moves memory: no convolutions."""
    down, keep, small = nhwc(n, c, h, w), nhwc(n, c, h, w), nhwc(n, c, h // 2, w // 2)
    alphas = torch.rand(n, 3) + 0.1
    columns = [alphas[:, p].view(-1, 1, 1, 1) for p in range(3)]

    def eager() -> Tensor:
        return columns[2] * down + columns[1] * keep + columns[0] * interpolate(small, scale_factor=2, mode="bilinear")

    case = case_of(lambda: ops.aggregate(down, keep, small, alphas, backend="cpu"), eager, 0, down, keep, small)
    case.macs = None
    return case
