"""The operators by themselves on a GPU, for `gpu_networks.py`: ours against eager PyTorch, time and launches of a call.

Eager is given channels_last inputs and weights with BatchNorm folded in: its best, as in `ops.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_clock import Gpu
from benchmarks.harness import SEED
from benchmarks.peers import relative_error
from dynroute import ops

conv, relu, interpolate = nn.functional.conv2d, torch.relu, nn.functional.interpolate
# The published network's scales at 1024 x 2048.
SHAPES = tuple((64 << s, 256 >> s, 512 >> s) for s in range(4))
TINY = ((16, 12, 20),)
Made = tuple[tuple[Any, ...], Callable[[], Tensor]]  # an operator's arguments, and eager's call on the same


def operators(gpu: Gpu, dtype: torch.dtype, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each operator and shape: milliseconds on the device, launches, error against float32."""
    for c, h, w in TINY if gpu.device == "cpu" else SHAPES:
        for name, (op, make) in OPERATORS.items():
            arguments, eager = make(gpu, dtype, c, h, w)
            ours = partial(getattr(ops, op), *arguments, backend=gpu.backend)
            wanted = make(gpu, torch.float32, c, h, w)[1]()
            jobs: dict[str, Callable[[], Tensor]] = {"ours": ours, "eager": eager}
            taken = gpu.on_device(jobs, rounds, False)  # type: ignore[arg-type]
            yield {
                "operator": name, "shape": [1, c, h, w], "dtype": str(dtype),
                "ms": {job: {"kind": gpu.kind, "p50": float(np.median(taken[job]))} for job in jobs},
                "launches": {job: sum(k["launches"] for k in gpu.kernels(run)) for job, run in jobs.items()},
                "errors": {job: relative_error(run().float(), wanted) for job, run in jobs.items()},
            }  # fmt: skip


def random(gpu: Gpu, dtype: torch.dtype, *shape: int, scale: float = 1.0) -> Tensor:
    """The same values in every type, channels_last."""
    generator = torch.Generator().manual_seed(SEED + sum(shape))
    made = (torch.randn(*shape, generator=generator) * scale).to(gpu.device, dtype)
    return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made


def cell(gpu: Gpu, dtype: torch.dtype, c: int, h: int, w: int) -> Made:
    """sepconv of two stages and X."""
    x = random(gpu, dtype, 1, c, h, w)
    depthwise = [random(gpu, dtype, c, 1, 3, 3, scale=1 / 3) for _ in range(2)]
    pointwise = [random(gpu, dtype, c, c, 1, 1, scale=c**-0.5) for _ in range(2)]
    shift, ones = random(gpu, dtype, c), [torch.ones(c, dtype=dtype, device=gpu.device)] * 2

    def eager() -> Tensor:
        y = relu(conv(conv(x, depthwise[0], padding=1, groups=c), pointwise[0], shift))
        return relu(conv(conv(y, depthwise[1], padding=1, groups=c), pointwise[1], shift) + x)

    return (x, depthwise, pointwise, ones, [shift, shift], None, 1, True, True), eager


def down(gpu: Gpu, dtype: torch.dtype, c: int, h: int, w: int) -> Made:
    """The path to the next smaller map."""
    x, weight = random(gpu, dtype, 1, c, h, w), random(gpu, dtype, 2 * c, c, 1, 1, scale=c**-0.5)
    shift, one = random(gpu, dtype, 2 * c), torch.ones(2 * c, dtype=dtype, device=gpu.device)
    return (x, weight, one, shift, None, 2), lambda: relu(conv(relu(x), weight, shift, 2))


def gate(gpu: Gpu, dtype: torch.dtype, c: int, h: int, w: int) -> Made:
    x, weight = random(gpu, dtype, 1, c, h, w), random(gpu, dtype, c // 2, c, 1, 1, scale=c**-0.5)
    shift, one = random(gpu, dtype, c // 2), torch.ones(c // 2, dtype=dtype, device=gpu.device)
    fc_weight, fc_bias = random(gpu, dtype, 3, c // 2, 1, 1, scale=1 / c), random(gpu, dtype, 3) + 1

    def eager() -> Tensor:
        pooled = relu(conv(x, weight, shift)).mean((2, 3), keepdim=True)
        return conv(pooled, fc_weight, fc_bias).tanh().relu().flatten(1)

    return (x, weight, one, shift, fc_weight, fc_bias, "tanh", False, None), eager


def aggregate(gpu: Gpu, dtype: torch.dtype, c: int, h: int, w: int) -> Made:
    below, keep, above = (random(gpu, dtype, 1, c, h // k, w // k) for k in (1, 1, 2))
    alphas = torch.tensor([[0.5, 0.8, 0.3]], dtype=dtype, device=gpu.device)
    a, b, d = alphas[0]  # in the order of `Path`

    def eager() -> Tensor:
        up = interpolate(above, scale_factor=2, mode="bilinear", align_corners=False)
        return d * below + b * keep + a * up

    return (below, keep, above, alphas), eager


# By what they are in a network: the operator's name, and what makes a call of it.
OPERATORS: dict[str, tuple[str, Callable[..., Made]]] = {
    "cell": ("sepconv", cell),
    "transform down": ("transform", down),
    "gate": ("gate", gate),
    "aggregate": ("aggregate", aggregate),
}
