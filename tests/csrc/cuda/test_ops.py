"""The operators on CUDA, by the emulator, against float64: odd sizes, no samples, every gate pattern, all schedules."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import reference
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits
from tests.support import cases
from tests.support.cuda.devices import ADA, H100
from tests.support.cuda.operators import emulated
from tests.support.rounding import check_result, errors
from tests.support.trees import to

REASON = library.why_not_loaded() or emulator.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
PATTERNS = [None, *(torch.tensor(bits) for bits in itertools.product((True, False), repeat=2))]  # of two samples
MAPS = [(1, 1), (7, 5), (9, 34)]
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check(op: str, *args: Any, **options: Any) -> Tensor:
    got = emulated(op, *args, **options)
    check_result(op, args, got)
    return got


def sepconv_args(n: int, c: int, h: int, w: int, stages: int, out: int, dtype: torch.dtype) -> tuple:
    x, depthwise, pointwise, scale, shift = cases.sepconv(n, c, h, w, stages, out)
    return to((x, depthwise, pointwise, scale, shift), dtype)


@types
@pytest.mark.parametrize("c, out, h, w, stages, stride, residual, relu", [
    (8, 8, 1, 1, 1, 1, True, False), (24, 24, 7, 5, 2, 1, True, True), (8, 72, 9, 34, 3, 1, False, True),
    (24, 8, 9, 34, 1, 2, False, True), (136, 136, 7, 5, 2, 1, True, True), (16, 32, 2, 9, 2, 2, False, False),
])  # fmt: skip
def test_sepconv(
    c: int, out: int, h: int, w: int, stages: int, stride: int, residual: bool, relu: bool, dtype: torch.dtype
) -> None:
    args = sepconv_args(2, c, h, w, stages, out, dtype)
    for open in PATTERNS:
        got = check("sepconv", *args, open, stride, residual, relu)
        assert open is None or (got[~open] == 0).all()


@types
@pytest.mark.parametrize(
    "c, out, h, w, stride",
    [(8, 8, 1, 1, 1), (24, 40, 7, 5, 2), (64, 32, 9, 34, 1), (72, 144, 9, 8, 2), (136, 64, 5, 13, 1)],
)
def test_transform(c: int, out: int, h: int, w: int, stride: int, dtype: torch.dtype) -> None:
    args = to(cases.transform(2, c, h, w, out), dtype)
    for open in PATTERNS:
        got = check("transform", *args, open, stride)
        assert open is None or (got[~open] == 0).all()


@types
@pytest.mark.parametrize("h, w", [(1, 1), (7, 5), (6, 34)])
@pytest.mark.parametrize("c", [8, 24])
def test_aggregate(c: int, h: int, w: int, dtype: torch.dtype) -> None:
    down, keep = to((cases.normal(3, c, h, w, seed=1), cases.normal(3, c, h, w, seed=2)), dtype)
    up = to(cases.normal(3, c, h // 2, w // 2, seed=3), dtype) if h % 2 == w % 2 == 0 else None
    alphas = to(torch.tensor([[0.5, 0.0, 0.25], [0.0, 1.0, 0.75], [1.0, 0.3, 0.0]]), dtype)
    for which in itertools.product((True, False), repeat=3):
        sources = [source if taken else None for source, taken in zip((down, keep, up), which)]
        if all(source is None for source in sources):
            continue
        for weights in (None, alphas):
            check("aggregate", *sources, weights)


@types
@pytest.mark.parametrize(
    "c, m, h, w, gates, activation, small",
    [
        (8, 4, 1, 1, 1, "tanh", False), (24, 12, 7, 5, 3, "softmax", False), (64, 32, 9, 34, 2, "sigmoid", True),
        (136, 72, 13, 9, 3, "tanh", True), (16, 8, 4, 7, 3, "tanh", True), (256, 128, 6, 10, 3, "sigmoid", False),
    ],
)  # fmt: skip
def test_gate(c: int, m: int, h: int, w: int, gates: int, activation: str, small: bool, dtype: torch.dtype) -> None:
    x, weight, scale, shift = cases.transform(2, c, h, w, m)
    fc_weight, fc_bias = cases.normal(gates, m, 1, 1, scale=m**-0.5, seed=4), 0.5 + 0.5 * cases.normal(gates, seed=5)
    args = to((x, weight, scale, shift, fc_weight, fc_bias), dtype)
    for present in PATTERNS:
        got = check("gate", *args, activation, small, present)
        assert present is None or (got[~present] == 0).all()


@types
@pytest.mark.parametrize("small", [False, True], ids=["full", "small"])
@pytest.mark.parametrize("c, m", [(64, 32), (136, 72), (256, 128)])
def test_gate_of_many_tiles(c: int, m: int, small: bool, dtype: torch.dtype) -> None:
    """The largest tiles, some over the edges; by 32 and 64 channels; weights that stay and that pass by."""
    x, weight, scale, shift = cases.transform(1, c, 90, 99, m)
    fc = cases.normal(3, m, 1, 1, scale=m**-0.5, seed=4), cases.normal(3, seed=5)
    check("gate", *to((x, weight, scale, shift, *fc), dtype), "sigmoid", small, None)


@types
@pytest.mark.parametrize("n", [0, 1, 5, 70])
def test_route(n: int, dtype: torch.dtype) -> None:
    """To the bit, as there is nothing to round: lists, counts, flags, slots and alphas."""
    alphas, *rest = cases.route(n)
    alphas = alphas.to(dtype)
    got = emulated("route", alphas, *rest)
    wanted = reference.route(alphas.float(), *rest)
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape and torch.equal(a.to(b.dtype), b)


def test_parity_matrix() -> None:
    """One call of each operator in each type, as a table (`pytest -rP -k matrix`); route has nothing to round."""
    masked = torch.tensor([True, False, True])
    fc = cases.normal(3, 32, 1, 1, scale=1 / 8, seed=4), cases.normal(3, seed=5)
    source = cases.normal(3, 64, 12, 20)
    given = {
        "sepconv": (*cases.sepconv(3, 64, 12, 20, 2), masked, 1, True, True),
        "gate": (*cases.transform(3, 64, 12, 20, 32), *fc, "sigmoid", False, masked),
        "transform": (*cases.transform(3, 64, 12, 20, 128), masked, 2),
        "aggregate": (source, source, source[:, :, :6, :10].contiguous(), torch.rand(3, 3)),
    }
    lines = ["| operator | float32 | float16, ours / torch's | bfloat16, ours / torch's |", "|---|---|---|---|"]
    for op, args in given.items():
        cells = []
        for dtype in DTYPES:
            of_type = to(args, dtype)
            ours, own = errors(op, of_type, emulated(op, *of_type))
            assert 0 < ours <= (2e-5 if dtype == torch.float32 else max(2 * own, 2 * torch.finfo(dtype).eps))
            cells.append(f"{ours:.1e}" + ("" if dtype == torch.float32 else f" / {own:.1e}"))
        lines.append(f"| {op} | " + " | ".join(cells) + " |")
    for dtype in DTYPES:
        alphas, *rest = cases.route(3)
        got, wanted = emulated("route", alphas.to(dtype), *rest), reference.route(alphas.to(dtype).float(), *rest)
        assert all(torch.equal(a.to(b.dtype), b) for a, b in zip(got, wanted, strict=True))
    print("\n".join([*lines, "| route | the same bits | the same bits | the same bits |"]))


@types
def test_no_samples(dtype: torch.dtype) -> None:
    x, *weights = sepconv_args(1, 8, 6, 4, 2, 8, dtype)
    assert emulated("sepconv", x[:0], *weights, None, 1, True, True).shape == (0, 8, 6, 4)
    x, *weights = to(cases.transform(1, 8, 6, 4, 16), dtype)
    assert emulated("transform", x[:0], *weights, None, 2).shape == (0, 16, 3, 2)
    assert emulated("aggregate", x[:0], x[:0], None, None).shape == (0, 8, 6, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_no_schedule_device_or_batch_changes_a_bit(dtype: torch.dtype) -> None:
    """And no block touches what another does: races in global memory are looked for as well."""
    open = torch.tensor([True, False, True])
    sepconv = (*sepconv_args(3, 24, 9, 17, 2, 24, dtype), open, 1, True, True)
    transform = (*to(cases.transform(3, 24, 9, 17, 40), dtype), open, 2)
    source = to(cases.normal(3, 8, 6, 10), dtype)
    aggregate = (source, source, source[:, :, :3, :5].contiguous(), None)
    fc = to((cases.normal(3, 12, 1, 1, seed=4), cases.normal(3, seed=5)), dtype)
    gate = (*to(cases.transform(3, 24, 37, 41, 12), dtype), *fc, "softmax", False, open)  # several tasks to a sample
    all_ops = {"sepconv": sepconv, "transform": transform, "aggregate": aggregate, "gate": gate}
    for op, args in all_ops.items():
        # the last block to arrive reads what others wrote: the checker of races cannot follow that
        first = emulated(op, *args, global_races=op != "gate")
        for seed, order in enumerate(("fwd", "rev", "rand")):
            assert torch.equal(emulated(op, *args, order=order, seed=seed, resident=2), first), (op, order)
        for limits in (ADA, H100, DeviceLimits(80, 1, 163 << 10, 164 << 10)):
            assert torch.equal(emulated(op, *args, limits=limits), first), (op, limits)
        if op != "aggregate":
            x, *weights = args
            alone = emulated(op, x[2:], *(w[2:] if w is open else w for w in weights))
            assert torch.equal(alone, first[2:]), op


def test_any_layout() -> None:
    """Sliced, expanded and NCHW input."""
    x, *weights = to(cases.transform(2, 8, 6, 5, 16), torch.float16)
    wide = torch.cat([x, x], 1)[:, :8]
    assert not wide.is_contiguous() and not wide.is_contiguous(memory_format=torch.channels_last)
    wanted = emulated("transform", x.contiguous(memory_format=torch.channels_last), *weights, None, 1)
    for given in (x.contiguous(), wide):
        assert torch.equal(emulated("transform", given, *weights, None, 1), wanted)
    one = x[:1].expand(2, -1, -1, -1)
    assert torch.equal(emulated("transform", one, *weights, None, 1)[1], wanted[0])


def test_errors() -> None:
    x, *weights = to(cases.transform(2, 8, 6, 5, 16), torch.float16)
    for args, message in (
        ((x.double(), *weights, None, 1), "transform: x: wanted float32, float16 or bfloat16, got float64"),
        ((x, weights[0].float(), *weights[1:], None, 1), "transform: weight: wanted float16, got float32"),
        ((x, *(w[:12] for w in weights), None, 1), "transform: weight: wanted channels in a multiple of 8, got 12"),
        ((x, *weights, torch.tensor([True]), 1), r"transform: open: wanted shape \[2\], got \[1\]"),
    ):
        with pytest.raises(RuntimeError, match=message):
            emulated("transform", *args)
    with pytest.raises(RuntimeError, match=r"sepconv: these channels need \d+ bytes of shared memory per block"):
        small = DeviceLimits(80, 108, 40 << 10, 64 << 10)
        emulated("sepconv", *sepconv_args(1, 512, 4, 4, 1, 512, torch.float32), None, 1, True, True, limits=small)


@types
@pytest.mark.parametrize("sources", ["dku", "du", "k", "u"])
@pytest.mark.parametrize("size", [(2, 8, 2, 2), (3, 24, 6, 10), (1, 64, 34, 44)], ids=str)
def test_aggregate_backward(size: tuple[int, int, int, int], sources: str, dtype: torch.dtype) -> None:
    """Against float64, in one pass; a source that is closed for a sample gets zeros, and so does its alpha."""
    *maps, alphas = to(cases.aggregate(*size, sources), dtype)
    alphas[-1, :2] = 0
    grad = to(cases.normal(*size, seed=9), dtype).contiguous(memory_format=torch.channels_last)
    for weighted, of_alphas in ((True, True), (True, False), (False, False)):
        given = [*maps, alphas if weighted else None]
        wanted = [v is not None for v in maps] + [of_alphas]
        got = emulated("aggregate_backward", grad, *given, wanted)
        leaves = [None if v is None else v.double().requires_grad_() for v in given]
        exact = torch.autograd.grad(
            reference.aggregate(*leaves), [v for v, wants in zip(leaves, wanted) if wants], grad.double()
        )
        for found, true in zip((g for g, wants in zip(got, wanted) if wants), exact, strict=True):
            assert found.shape == true.shape and not found.isnan().any()
            step = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps
            assert (found.double() - true).abs().max() <= step * true.abs().max(), (weighted, of_alphas)
        assert all(g.shape[0] == 0 for g, wants in zip(got, wanted) if not wants)


def test_aggregate_backward_is_the_same_alone_and_in_any_order() -> None:
    *maps, alphas = cases.aggregate(2, 16, 40, 36)
    grad = cases.normal(2, 16, 40, 36, seed=9)
    grad, *maps = (v.contiguous(memory_format=torch.channels_last) for v in (grad, *maps))
    wanted = [True] * 4
    whole = emulated("aggregate_backward", grad, *maps, alphas, wanted)
    for limits, order in ((ADA, "rand"), (H100, "rev")):
        again = emulated("aggregate_backward", grad, *maps, alphas, wanted, limits=limits, order=order)
        assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))
    alone = emulated("aggregate_backward", *(v[1:] for v in (grad, *maps, alphas)), wanted)
    assert all(torch.equal(a[1:], b) for a, b in zip(whole, alone, strict=True))
