"""The training operators in Triton, both directions, against float64: on a GPU, or by Triton's interpreter on the CPU.

The cases, and how far off they may be, are the CUDA kernels'.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops
from dynroute.native import library
from tests.support import cases, synchronised, trained_cases
from tests.support.cuda import trained
from tests.support.ranks import together
from tests.support.trained_cases import GATE, LIMIT, NODE, PATTERNS, SEPCONV, SOME, TRANSFORM, in_type
from tests.support.trees import copies, leaves, to

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
types = pytest.mark.parametrize("dtype", list(LIMIT), ids=lambda d: str(d).removeprefix("torch."))
CALLS = [
    *(("sepconv_train", cases.sepconv_train, case) for case in SEPCONV),
    *(("transform_train", cases.transform_train, case) for case in TRANSFORM),
    *(("gate_train", cases.gate_train, case) for case in GATE),
    *(("node_train", cases.node_train, case) for case in NODE),
]


@pytest.fixture(autouse=True)
def as_tested(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory is NaN before: what is not written shows. Interpreted, tiles are large, as a program takes as long
    whatever its size; `test_checked_in_cuts` has the real ones."""
    from dynroute.ops.triton import configs

    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if not ON_GPU:
        monkeypatch.setattr(configs, "find", lambda *key: configs.Cut(64, 64, 64))
    yield
    torch.use_deterministic_algorithms(False)


def call(op: str, *args: Any) -> tuple[Tensor, ...]:
    from dynroute.ops.triton import operators  # noqa: F401  (importing makes them)

    return tuple(out.cpu() for out in getattr(torch.ops.dynroute_triton, op)(*to(args, DEVICE)))


def check(op: str, args: tuple, options: tuple) -> None:
    # Triton's interpreter cuts bfloat16's digits off where a GPU rounds
    trained_cases.check(op, args, options, call, 2 if args[0].dtype == torch.bfloat16 and not ON_GPU else 1)


@types
@pytest.mark.parametrize("op, make, case", CALLS, ids=lambda value: str(value) if not callable(value) else "")
def test_parity(op: str, make: Any, case: tuple, dtype: torch.dtype) -> None:
    *size, options = case
    check(op, in_type(make(*size), dtype), options)


@pytest.mark.parametrize("op", ["sepconv_train", "node_train"])
def test_checked_in_cuts(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as a GPU has them: more than one, in each direction, the last ones not full."""
    from dynroute.ops.triton import configs

    monkeypatch.undo()
    assert configs.find("train_forward", 8, torch.float16).block_m <= 64
    if op == "node_train":
        check(op, in_type(cases.node_train(3, 8, 9, 10), torch.float16), (None, 0.6, True, False, ""))
    else:
        check(op, in_type(cases.sepconv_train(3, 8, 9, 10, 1, 40), torch.float16), (SOME, 1, False, True, False, ""))


@pytest.mark.parametrize("bridge", [0.0, 0.6])
def test_every_gate_pattern(bridge: float) -> None:
    """Each of two samples closed, open without one path or the other, or open: what is left out, and what passes x."""
    x, _, *weights = cases.node_train(2, 16, 5, 6, 1)
    for one, other in itertools.product(PATTERNS, repeat=2):
        args = in_type((x, torch.stack([one, other]), *weights), torch.float32)
        check("node_train", args, (None, bridge, True, False, ""))


@types
def test_no_samples(dtype: torch.dtype) -> None:
    """Statistics are the running ones, gradients of weights are 0."""
    trained_cases.check_no_samples(dtype, call)


def test_nobody_takes_part() -> None:
    options = (torch.zeros(3, dtype=torch.bool), 1, True, True, False, "")
    args = in_type(cases.sepconv_train(3, 16, 6, 4), torch.float16)
    results, gradients, _ = trained.both_directions("sepconv_train", args, options, call)
    assert (results[0] == 0).all() and all((g == 0).all() for g in gradients)


def test_statistics_far_from_zero() -> None:
    """A mean that is 1000 deviations away: the variance keeps its digits."""
    x, weight, *norm = cases.transform_train(2, 8, 16, 16, 8)
    args = in_type((x + 1000 / weight.sum(1).abs().min(), weight, *norm), torch.float32)
    _, raw, stats = call("transform_train", *args, None, 1, False, False, "", 1e-5, False)
    exact = raw.double().var((0, 2, 3), correction=1)
    torch.testing.assert_close(stats[0, 2].double(), exact, rtol=1e-5, atol=0)


def test_what_is_not_wanted_is_not_made() -> None:
    args = in_type(cases.node_train(2, 16, 5, 6), torch.float16)
    options = (None, 0.0, True, False, "")
    outs = call("node_train", *args, *options, 1e-5, False)
    given = (torch.ones_like(outs[0]), None, None, *args[:8], *outs[3:], *options, False)
    whole = call("node_train_backward", *given, [True, True])
    for wanted in ([False, True], [True, False], [False, False]):
        x, alphas, flat = call("node_train_backward", *given, wanted)
        assert x.shape[0] == (2 if wanted[0] else 0) and torch.equal(alphas, whole[1])
        norms = 2 * sum(g.numel() for g in args[6])
        assert torch.equal(flat[-norms:], whole[2][-norms:])
        assert flat.numel() == norms or torch.equal(flat, whole[2])


SOURCES = ["".join(names) for k in (1, 2, 3) for names in itertools.combinations("dku", k)]


@types
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sources", SOURCES)
def test_aggregate(sources: str, weighted: bool, dtype: torch.dtype) -> None:
    """All gradients; a source whose alpha is 0 is not read, and gets none."""
    for c, h, w in ((8, 2, 2), (24, 6, 10)):
        *maps, alphas = to(cases.aggregate(2, c, h, w, sources), dtype)
        alphas[0] = torch.tensor([0.0, 0.5, 0.0])
        given = (*maps, None if weighted else alphas)
        learnt = [to(copies(given, True), DEVICE), to(copies(given, True), torch.float64)]
        grads = []
        for args, backend in zip(learnt, ("triton", "reference")):
            args = [None if a is None else a.detach().requires_grad_() for a in args]
            out = ops.aggregate(*args, backend=backend)
            loss = (out * cases.normal(*out.shape, seed=7).to(dtype).to(out)).sum()
            grads.append(torch.autograd.grad(loss, leaves(args)))
        for got, exact in zip(*grads, strict=True):
            assert got.dtype == dtype
            assert trained.error(got.cpu(), exact) <= max(4e-6, LIMIT[dtype]), trained.error(got.cpu(), exact)


LOSSES = [  # n, k, h, w, factor, crop, weighted
    (2, 19, 4, 5, 4, (0, 0), False),
    (1, 1, 1, 1, 4, (1, 0), False),
    (2, 5, 7, 5, 4, (3, 1), True),
    (2, 3, 5, 8, 3, (0, 5), True),
    (1, 2, 3, 3, 1, (0, 0), False),
    (1, 150, 3, 4, 2, (1, 3), True),
    (0, 4, 3, 3, 4, (0, 0), False),
]


@pytest.mark.parametrize("n, k, h, w, factor, crop, weighted", LOSSES)
def test_loss(n: int, k: int, h: int, w: int, factor: int, crop: tuple[int, int], weighted: bool) -> None:
    logits, labels = cases.upsampled_cross_entropy(n, k, h, w, factor, crop)
    weight = cases.normal(k, seed=9).abs() if weighted else None
    results = []
    for backend, dtype, device in (("triton", torch.float32, DEVICE), ("reference", torch.float64, "cpu")):
        x = logits.to(device, dtype, memory_format=torch.channels_last).requires_grad_()
        of = None if weight is None else weight.to(device, dtype)
        loss = ops.upsampled_cross_entropy(x, labels.to(device), factor, of, backend=backend)
        results.append((loss.detach().cpu(), *torch.autograd.grad(loss, x)))
    for got, exact in zip(*results, strict=True):
        assert trained.error(got.cpu(), exact) <= 4e-6


def test_a_label_that_is_no_class() -> None:
    logits, labels = cases.upsampled_cross_entropy(1, 3, 4, 5)
    labels[0, 0, 0] = 7
    logits = logits.to(DEVICE).requires_grad_()
    loss = ops.upsampled_cross_entropy(logits, labels.to(DEVICE), backend="triton")
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isnan() and grad[0, :, 0, 0].isnan().all() and not grad[0, :, 2:].isnan().any()


PUBLIC = {
    "sepconv_train": (cases.sepconv_train(2, 8, 5, 6, 2), {"residual": True, "final_relu": True}),
    "transform_train": (cases.transform_train(2, 8, 5, 6, 16), {"stride": 2}),
    "gate_train": (cases.gate_train(2, 16, 5, 6), {"columns": (1, 0, 2)}),
    "node_train": (cases.node_train(2, 16, 4, 6), {"skip": True}),
}


@pytest.mark.parametrize("op", list(PUBLIC))
def test_autograd_autocast_flops(op: str) -> None:
    """Through the public function: gradients, running statistics, as much work as the native operator says; under
    autocast on the CPU in float32, on a GPU with maps of autocast's type."""
    args, options = PUBLIC[op]
    found = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        given = to(copies(args, True), device)
        with FlopCounterMode(display=False) as flops:
            outs = leaves(getattr(ops, op)(*given, **options, backend=backend))
            loss = sum((out * cases.normal(*out.shape, seed=3).to(device)).sum() for out in outs)
            grads = torch.autograd.grad(loss, leaves(given), allow_unused=True, materialize_grads=True)
        found.append([*(out.detach() for out in outs), *grads, *leaves(given)])
        if backend == "triton" and library.why_not_loaded() is None:
            with FlopCounterMode(display=False) as native:
                own = copies(args, True)
                sum(out.sum() for out in leaves(getattr(ops, op)(*own, **options, backend="cpu"))).backward()
            assert flops.get_total_flops() == native.get_total_flops() > 0
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-4, atol=1e-4 * max(wanted.abs().max().item(), 1e-3))
    x, *rest = to(args, DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        lowered = leaves(getattr(ops, op)(x.to(torch.bfloat16), *rest, **options, backend="triton"))
    of_maps = torch.bfloat16 if ON_GPU and op != "gate_train" else torch.float32
    assert all(out.dtype == of_maps for out in lowered)


SPLITS = [(0, 1, 4), (0, 0, 4)]
SHARED: list[tuple[str, dict[str, Any]]] = [
    ("sepconv_train", {"open": synchronised.MASK, "residual": True, "final_relu": True}),
    ("gate_train", {"small": False}),
    ("node_train", {"skip": True}),
    ("node_train", {"skip": True, "frozen": True}),
]


def parts(rank: int, processes: int) -> list[Any]:
    """What a process finds for its samples, of each split and operator."""
    from dynroute.ops.triton import configs

    configs.find = lambda *key: configs.Cut(64, 64, 64)  # as in the tests' own process
    group = dist.group.WORLD.group_name  # type: ignore[union-attr]
    return [
        synchronised.trained(op, options, slice(split[rank], split[rank + 1]), group, "triton", torch.float32)
        for split in SPLITS
        for op, options in SHARED
    ]


@pytest.mark.skipif(ON_GPU, reason="two processes on one GPU have no nccl group")
def test_parts_of_a_batch_are_the_whole(tmp_path: Path) -> None:
    """Two processes, of which one may have no sample: outputs, gradients and running statistics."""
    ranks, done = together(parts, 2, tmp_path / "ranks"), 0
    for _ in SPLITS:
        for op, options in SHARED:
            own, running, weights = synchronised.trained(op, options, slice(0, 4), "", "reference")
            found = [of[done] for of in ranks]
            done += 1
            for got, exact in (
                *zip([torch.cat(rows) for rows in zip(*(f[0] for f in found))], own, strict=True),
                *zip([sum(of) for of in zip(*(f[2] for f in found))], weights, strict=True),
                *zip(found[0][1], running, strict=True),
            ):
                assert trained.error(got, exact) <= 1e-5, (op, options)
            assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
