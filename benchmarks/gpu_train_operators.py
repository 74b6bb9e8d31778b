"""The operators of a training step on a GPU, for `gpu_networks.py`: forward and backward apart, against the modules of
plain PyTorch in channels_last, in float32 and under autocast.

Shapes are those of L16 C=64 on 2x512x512. What the host needs for a call is in no time here: the step's says that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_clock import Gpu
from benchmarks.peers import relative_error
from benchmarks.train_ops import choose, node_of, noise
from dynroute import ops
from dynroute.models.layers import upsample

SHAPES = tuple((2, 64 << s, 128 >> s, 128 >> s, s) for s in range(4))
TINY = ((2, 16, 8, 8, 0),)
Forward = Callable[[], list[Tensor]]


def training_operators(gpu: Gpu, choice: str, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each operator, shape and type. choice: the operators to take, "cuda" or what a dry run has."""
    for n, c, h, w, scale in TINY if gpu.device == "cpu" else SHAPES:
        for name, make in OPERATORS.items():
            for autocast in (None, torch.float16):
                runs = make(gpu, choice, n, c, h, w, scale)
                row = {"operator": name, "shape": [n, c, h, w], "autocast": autocast and str(autocast)}
                yield row | measured(gpu, runs, autocast if gpu.device == "cuda" else None, rounds)


def measured(gpu: Gpu, runs: dict[str, tuple[Forward, list[Tensor]]], autocast: Any, rounds: int) -> dict[str, Any]:
    """Milliseconds on the device of both directions, and how far ours is from PyTorch's."""
    forwards: dict[str, Callable[[], Any]] = {}
    backwards: dict[str, Callable[[], Any]] = {}
    results: dict[str, list[Tensor]] = {}
    for name, (run, leaves) in runs.items():

        def forward(run: Forward = run) -> list[Tensor]:
            with torch.autocast(gpu.device, autocast or torch.bfloat16, enabled=autocast is not None):
                return run()

        outs = forward()
        generator = torch.Generator().manual_seed(0)
        grads = [torch.empty_like(out).copy_(torch.randn(out.shape, generator=generator)) for out in outs]
        forwards[name] = forward
        backwards[name] = partial(torch.autograd.grad, outs, leaves, grads, retain_graph=True, allow_unused=True)
        results[name] = [*outs, *(g for g in backwards[name]() if g is not None)]
    pairs = zip(*results.values(), strict=True)
    found: dict[str, Any] = {"error": max(relative_error(ours.float(), eager.float()) for ours, eager in pairs)}
    for direction, jobs in (("forward", forwards), ("backward", backwards)):
        taken = gpu.on_device(jobs, rounds, False)
        found[direction] = {name: {"kind": gpu.kind, "p50": float(np.median(taken[name]))} for name in jobs}
    return found


def by_both(
    gpu: Gpu, choice: str, module: nn.Module, call: Callable[[Any], list[Tensor]], inputs: list[Tensor]
) -> dict[str, tuple[Forward, list[Tensor]]]:
    """Forwards of copies of a module, and what has gradients in them."""
    runs = {}
    for name, taken in (("ours", choice), ("eager", "reference")):
        own: Any = copy.deepcopy(module).to(gpu.device)
        choose(own, taken)
        runs[name] = (partial(call, own), [*inputs, *(p for p in own.parameters() if p.requires_grad)])
    return runs


def leaf(gpu: Gpu, *shape: int) -> Tensor:
    return noise(*shape).detach().to(gpu.device).requires_grad_()


def node(gpu: Gpu, choice: str, n: int, c: int, h: int, w: int, scale: int) -> Any:
    """A node's cell, and what its paths make of it."""
    module = node_of(c, scale)
    for name in ("conv", "fc"):  # the gate takes no part
        getattr(module.gate, name).requires_grad_(False)
    x = leaf(gpu, n, c, h, w)
    alphas = (torch.rand(n, 3) * 0.5 + 0.25).to(gpu.device).requires_grad_()
    return by_both(gpu, choice, module, lambda own: [out for out in own(x, alphas) if out is not None], [x, alphas])


def gate(gpu: Gpu, choice: str, n: int, c: int, h: int, w: int, scale: int) -> Any:
    """A node's gate."""
    x = leaf(gpu, n, c, h, w)
    return by_both(gpu, choice, node_of(c, scale).gate, lambda own: [own(x)], [x])


def aggregate(gpu: Gpu, choice: str, n: int, c: int, h: int, w: int, scale: int) -> Any:
    """The sum of a node's sources, which come weighted."""
    parts = [leaf(gpu, n, c, h, w), leaf(gpu, n, c, h, w), leaf(gpu, n, c, h // 2, w // 2)]
    return {
        "ours": (lambda: [ops.aggregate(*parts, backend=choice)], parts),
        "eager": (lambda: [parts[0] + parts[1] + upsample(parts[2], 2)], parts),
    }


OPERATORS: dict[str, Callable[..., Any]] = {"node": node, "gate": gate, "aggregate": aggregate}
