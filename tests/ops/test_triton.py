"""The operators in Triton against float64: on a GPU, or by Triton's interpreter on the CPU.

Odd sizes, no samples, every mask; gradients; what refuses says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops
from dynroute.native import library
from dynroute.ops import backends, reference
from tests.support import cases
from tests.support.rounding import check_result
from tests.support.trees import leaves, to

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MASKS = [None, *(torch.tensor(bits) for bits in itertools.product((True, False), repeat=2))]  # of two samples
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check(op: str, *args: Any) -> Tensor:
    got = getattr(ops, op)(*to(args, DEVICE), backend="triton").cpu()
    # Triton's interpreter cuts bfloat16's digits off where a GPU rounds
    check_result(op, args, got, 4 if got.dtype == torch.bfloat16 and not ON_GPU else 2)
    return got


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is NaN before: what is not written shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@types
@pytest.mark.parametrize("c, out, h, w, stages, stride, residual, relu", [
    (8, 8, 1, 1, 1, 1, True, False), (24, 24, 7, 5, 2, 1, True, True), (8, 72, 9, 14, 3, 1, False, True),
    (24, 8, 9, 14, 1, 2, False, True), (72, 72, 5, 4, 1, 1, True, True), (16, 32, 2, 9, 2, 2, False, False),
])  # fmt: skip
def test_sepconv(
    c: int, out: int, h: int, w: int, stages: int, stride: int, residual: bool, relu: bool, dtype: torch.dtype
) -> None:
    args = to(cases.sepconv(2, c, h, w, stages, out), dtype)
    for open in MASKS if stages < 3 else MASKS[:2]:
        got = check("sepconv", *args, open, stride, residual, relu)
        assert open is None or (got[~open] == 0).all()


@types
@pytest.mark.parametrize("c, out, h, w, stride", [(8, 8, 1, 1, 1), (24, 40, 7, 5, 2), (72, 16, 9, 14, 1)])
def test_transform(c: int, out: int, h: int, w: int, stride: int, dtype: torch.dtype) -> None:
    for open in MASKS:
        got = check("transform", *to(cases.transform(2, c, h, w, out), dtype), open, stride)
        assert open is None or (got[~open] == 0).all()


@types
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize("c, m, h, w, small, gates", [
    (8, 8, 4, 5, True, 1), (24, 12, 17, 21, False, 3), (16, 72, 7, 9, True, 2)
])  # fmt: skip
def test_gate(c: int, m: int, h: int, w: int, small: bool, gates: int, activation: str, dtype: torch.dtype) -> None:
    x, weight, scale, shift = cases.transform(2, c, h, w, m)
    fc = (cases.normal(gates, m, 1, 1, scale=m**-0.5, seed=4), cases.normal(gates, seed=5))
    for present in MASKS:
        got = check("gate", *to((x, weight, scale, shift, *fc), dtype), activation, small, present)
        assert present is None or (got[~present] == 0).all()


@types
@pytest.mark.parametrize("h, w, sources", [(2, 2, "dku"), (8, 10, "dku"), (6, 4, "u"), (7, 5, "dk"), (6, 8, "ku")])
def test_aggregate(h: int, w: int, sources: str, dtype: torch.dtype) -> None:
    *maps, alphas = to(cases.aggregate(3, 24, h, w, sources), dtype)
    check("aggregate", *maps, alphas)
    check("aggregate", *maps, None)


@pytest.mark.parametrize("n", [0, 1, 5, 200])
def test_route(n: int) -> None:
    """The same bits; lists longer than a block's samples."""
    g = torch.Generator().manual_seed(n)
    alphas = torch.rand(n, 4, 3, generator=g) * (torch.rand(n, 4, 3, generator=g) < 0.5)
    present, exists = torch.rand(n, 4, generator=g) < 0.7, torch.rand(4, 3, generator=g) < 0.8
    args = (alphas, present, exists, torch.randint(0, 2, (n, 4), generator=g, dtype=torch.int32))
    for got, wanted in zip(ops.route(*to(args, DEVICE), backend="triton"), reference.route(*args), strict=True):
        assert torch.equal(got.cpu(), wanted)


@types
def test_no_samples(dtype: torch.dtype) -> None:
    check("sepconv", *to(cases.sepconv(0, 8, 6, 5, 2, 16), dtype))
    check("transform", *to(cases.transform(0, 8, 6, 5, 16), dtype))
    check("aggregate", *to(cases.aggregate(0, 8, 6, 4), dtype))


def test_closed_samples_are_not_read() -> None:
    x, *weights = cases.transform(2, 24, 9, 7, 40)
    x[1] = torch.nan
    assert (check("transform", x, *weights, MASKS[2])[1] == 0).all()
    down, keep, up, alphas = cases.aggregate(2, 8, 6, 4)
    alphas[0, 0], up[0] = 0, torch.nan
    check("aggregate", down, keep, up, alphas)


GRADIENTS = {
    "sepconv": (*cases.sepconv(2, 8, 5, 6, 2), MASKS[2], 1, True, True),
    "transform": (*cases.transform(2, 8, 5, 6, 16), MASKS[2], 2),
    "gate": (*cases.transform(2, 8, 5, 6, 8), *(cases.normal(3, 8, 1, 1), cases.normal(3)), "softmax", False, None),
    "aggregate": cases.aggregate(2, 8, 6, 4),
}  # fmt: skip


@pytest.mark.parametrize("op", list(GRADIENTS))
def test_gradients_and_flops(op: str) -> None:
    """Of every argument that has one, the reference's; and as much work as the native operator says."""
    results = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        args = to(GRADIENTS[op], device)
        learnt = [leaf.requires_grad_() for leaf in leaves(args) if leaf.is_floating_point()]
        with FlopCounterMode(display=False) as flops:
            out = getattr(ops, op)(*args, backend=backend)
        grads = torch.autograd.grad(out, learnt, cases.normal(*out.shape, seed=3).to(device))
        results.append((out, *grads))
        if backend == "triton" and library.why_not_loaded() is None:
            with FlopCounterMode(display=False) as native:
                getattr(ops, op)(*to(GRADIENTS[op], "cpu"), backend="cpu")
            assert flops.get_total_flops() == native.get_total_flops()
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got.cpu(), wanted)


def test_what_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    x, *weights = cases.transform(1, 8, 4, 4, 8)
    with pytest.raises(RuntimeError, match="transform: stride: wanted 1 or 2, got 3"):
        ops.transform(*to((x, *weights), DEVICE), stride=3, backend="triton")
    assert backends.why_not("transform", "triton", x.double().to(DEVICE)) == (
        "torch.float64 is not float32, float16 or bfloat16"
    )
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if not ON_GPU:
        assert backends.why_not("transform", "triton") == (
            "triton needs a GPU; TRITON_INTERPRET=1 runs it on the CPU, slowly"
        )


def test_compilers_trace_the_choice_of_backend() -> None:
    def chosen(x: Tensor) -> Tensor:
        backends.operator("transform", "triton", x)
        return x + 1

    x = torch.zeros(1, 8, 2, 2, device=DEVICE)
    assert torch.equal(torch.compile(chosen, fullgraph=True, backend="eager")(x), x + 1)
