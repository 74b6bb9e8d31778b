"""The aggregation's backward, with alphas and with sources that come weighted, against plain PyTorch."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops
from dynroute.native import library
from tests.support import cases
from tests.support.isa import other_isas
from tests.support.processes import python

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
F64 = torch.float64
SUBSETS = ["".join(names) for k in (1, 2, 3) for names in combinations("dku", k)]
Arguments = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def arguments(n: int, c: int, h: int, w: int, sources: str, weighted: bool, dtype: torch.dtype) -> Arguments:
    """down, keep, up, alphas; `weighted`: there are no alphas."""
    *maps, alphas = cases.aggregate(n, c, h, w, sources, dtype)
    return *maps, None if weighted else alphas


def trained(args: Arguments, backend: str, wanted: tuple[bool, ...] = (True,) * 4) -> list[Tensor | None]:
    """The output, and all gradients of a fixed weighting of it."""
    given = [None if a is None else a.clone().requires_grad_(w) for a, w in zip(args, wanted)]
    out = ops.aggregate(*given, backend=backend)
    (out * cases.normal(*out.shape, dtype=out.dtype, seed=7)).sum().backward()
    return [out.detach(), *(None if a is None else a.grad for a in given)]


def close(actual: list[Tensor | None], expected: list[Tensor | None]) -> None:
    """Within rounding, relative to each tensor's largest value."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert (a is None) == (e is None), i
        if a is None or e is None or not e.numel():
            continue
        epsilon = 2e-5 if e.dtype == torch.float32 else 1e-12
        torch.testing.assert_close(
            a, e, rtol=epsilon, atol=epsilon * max(e.abs().max().item(), 1e-3), msg=lambda m, i=i: f"{i}: {m}"
        )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sources", SUBSETS)
def test_gradients(sources: str, weighted: bool, dtype: torch.dtype) -> None:
    for c, h, w in ((4, 2, 2), (12, 4, 2), (20, 2, 10), (36, 14, 18), (64, 32, 34), (516, 6, 14)):
        args = arguments(2, c, h, w, sources, weighted, dtype)
        close(trained(args, "cpu"), trained(args, "reference"))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("h, w", [(1, 1), (7, 5), (13, 9)])
def test_odd_sizes_without_up(h: int, w: int, weighted: bool) -> None:
    args = arguments(3, 20, h, w, "dk", weighted, F64)
    close(trained(args, "cpu"), trained(args, "reference"))


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 3), c=st.integers(1, 40).map(lambda i: 4 * i), h=st.integers(1, 24).map(lambda i: 2 * i),
    w=st.integers(1, 24).map(lambda i: 2 * i), sources=st.sampled_from(SUBSETS), weighted=st.booleans(),
    wanted=st.tuples(*[st.booleans()] * 4).filter(any),
)  # fmt: skip
def test_any_shape(n: int, c: int, h: int, w: int, sources: str, weighted: bool, wanted: tuple[bool, ...]) -> None:
    """Whatever is wanted, and nothing else."""
    args = arguments(n, c, h, w, sources, weighted, F64)
    if not any(wants and a is not None for wants, a in zip(wanted, args)):
        return
    close(trained(args, "cpu", wanted), trained(args, "reference", wanted))


def test_wide_maps() -> None:
    """More pixels than a block of a row has."""
    for c, h, w in ((4, 4, 1100), (128, 2, 70), (1024, 4, 22)):
        args = arguments(1, c, h, w, "dku", False, F64)
        close(trained(args, "cpu"), trained(args, "reference"))


def test_closed_sources() -> None:
    """A source whose alpha is 0 is not read, and neither it nor its alpha gets a gradient."""
    *maps, alphas = cases.aggregate(8, 8, 6, 4, dtype=F64)
    alphas *= torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)])
    open = [alphas[:, path] != 0 for path in (2, 1, 0)]  # of down, keep, up
    maps = [torch.where(o.view(-1, 1, 1, 1), x, float("nan")) for o, x in zip(open, maps)]
    result = trained((*maps, alphas), "cpu")
    close(result, trained((*maps, alphas), "reference"))
    for grad, mask in zip(result[1:4], open):
        assert (grad[~mask] == 0).all() and (grad[mask] != 0).any()
    assert ((result[4] != 0) == (alphas != 0)).all()


def test_sources_that_come_weighted_share_their_gradient() -> None:
    """For keep and down it is the output's, as it came: no copy, no kernel."""
    down, keep, up, _ = arguments(2, 8, 6, 4, "dku", True, torch.float32)
    given = [source.requires_grad_() for source in (down, keep, up)]
    out = ops.aggregate(*given, backend="cpu")
    grad = cases.normal(*out.shape)
    of_down, of_keep, _ = torch.autograd.grad(out, given, grad)
    assert of_down.data_ptr() == of_keep.data_ptr() == grad.data_ptr()


def saved(out: Tensor) -> list[Tensor]:
    assert out.grad_fn is not None
    return [t for t in out.grad_fn.saved_tensors if t is not None]


def test_what_is_kept() -> None:
    """Sources are kept where an alpha wants its gradient, and only there."""
    for weighted, wanted, expected in (
        (True, (True, True, True, True), set()),
        (False, (True, True, True, False), {3}),
        (False, (True, True, True, True), {0, 1, 2, 3}),
    ):
        given = [
            None if a is None else a.clone().requires_grad_(w)
            for a, w in zip(arguments(2, 8, 6, 4, "dku", weighted, torch.float32), wanted)
        ]
        out = ops.aggregate(*given, backend="cpu")
        assert {i for i, a in enumerate(given) if a is not None and any(a is s for s in saved(out))} == expected


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sources", ["dku", "ku", "du"])
def test_bits(sources: str, weighted: bool) -> None:
    """The same bits with any number of threads, and of a sample alone."""
    args = arguments(3, 40, 62, 66, sources, weighted, torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(trained(args, "cpu"))
        for other in results[1:]:
            assert all(a is None or torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    finally:
        torch.set_num_threads(before)
    given = [None if a is None else a.clone().requires_grad_() for a in args]
    one = [None if a is None else a[1:2].clone().requires_grad_() for a in args]
    grad = cases.normal(3, 40, 62, 66, seed=3)
    for inputs, of in ((given, grad), (one, grad[1:2])):
        ops.aggregate(*inputs, backend="cpu").backward(of)
    assert all(a is None or torch.equal(a.grad[1:2], b.grad) for a, b in zip(given, one))


def test_layouts() -> None:
    """Gradients that lie in any way give the same; what is made is channels_last."""
    args = arguments(2, 12, 8, 6, "dku", False, torch.float32)
    wide = torch.full((2, 24, 16, 6), float("nan"))
    grad = cases.normal(2, 12, 8, 6)
    wide[:, ::2, ::2] = grad
    results = []
    for view in (grad, grad.to(memory_format=torch.channels_last), wide[:, ::2, ::2]):
        given = [a.clone().requires_grad_() for a in args]
        results.append(torch.autograd.grad(ops.aggregate(*given, backend="cpu"), given, view))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    assert all(a.is_contiguous(memory_format=torch.channels_last) for a in results[0][:3])
    expanded = []
    for backend in ("cpu", "reference"):
        given = [a.clone().requires_grad_() for a in args]
        expanded.append(list(torch.autograd.grad(ops.aggregate(*given, backend=backend).sum(), given)))
    close(*expanded)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sources", SUBSETS)
def test_gradcheck(sources: str, weighted: bool, backend: str) -> None:
    args = arguments(2, 4, 4, 6, sources, weighted, F64)

    def run(*given: Tensor) -> Tensor:
        left = iter(given)
        return ops.aggregate(*[None if a is None else next(left) for a in args], backend=backend)

    flat = [a.clone().requires_grad_() for a in args if a is not None]
    assert torch.autograd.gradcheck(run, flat, fast_mode=True)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sources", ["dku", "k", "du"])
def test_opcheck(sources: str, weighted: bool) -> None:
    given = [a if a is None else a.requires_grad_() for a in arguments(2, 8, 6, 4, sources, weighted, torch.float32)]
    torch.library.opcheck(torch.ops.dynroute.aggregate.default, tuple(given))
    grad, given = cases.normal(2, 8, 6, 4), [a if a is None else a.detach() for a in given]
    wanted = [a is not None for a in given]
    torch.library.opcheck(torch.ops.dynroute.aggregate_backward.default, (grad, *given, wanted))


@pytest.mark.parametrize("weighted", [False, True])
def test_compile(weighted: bool) -> None:
    args = arguments(2, 8, 6, 4, "dku", weighted, torch.float32)

    def run(*given: Tensor | None) -> Tensor:
        return 2 * ops.aggregate(*given, backend="cpu")

    def gradients(call) -> list[Tensor]:  # type: ignore[no-untyped-def]
        given = [None if a is None else a.clone().requires_grad_() for a in args]
        out = call(*given)
        grads = torch.autograd.grad(out.square().sum(), [a for a in given if a is not None])
        return [out.detach(), *grads]

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    close(gradients(compiled), gradients(run))


def test_flops() -> None:
    given = [a.requires_grad_() for a in arguments(2, 8, 6, 4, "dku", False, torch.float32)]
    with FlopCounterMode(display=False) as counter:
        ops.aggregate(*given, backend="cpu").sum().backward()
    assert counter.get_total_flops() == 0


def test_errors() -> None:
    down, keep, up, alphas = cases.aggregate(2, 8, 6, 4)
    none = (None, None, None)
    for nothing in ((*none, alphas), none):
        with pytest.raises(ValueError, match="aggregate: down, keep, up: wanted at least one source, got none"):
            ops.aggregate(*nothing)
    wrong = [
        ((down[:, :6], None, None, alphas), r"aggregate: sources: wanted channels in a multiple of 4, got 6"),
        ((down, keep[:1], up), r"aggregate: keep: wanted shape \[2, 8, 6, 4\], got \[1, 8, 6, 4\]"),
        ((down, keep, up, alphas[:1]), r"aggregate: alphas: wanted shape \[2, 3\], got \[1, 3\]"),
        ((down, keep, up, alphas.double()), r"aggregate: alphas: wanted float32, got float64"),
        ((down.bfloat16(), None, None), r"aggregate: backend .cpu. cannot be used: torch.bfloat16 is not"),
    ]
    for args, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            ops.aggregate(*args, backend="cpu")
    backward = torch.ops.dynroute.aggregate_backward
    with pytest.raises(RuntimeError, match=r"aggregate_backward: wanted: wanted 4 booleans, got 1"):
        backward(down, down, keep, up, alphas, [True])
    with pytest.raises(RuntimeError, match=r"aggregate_backward: alphas: wanted a tensor where their gradient is, got"):
        backward(down, down, keep, up, None, [True] * 4)
    with pytest.raises(RuntimeError, match=r"aggregate_backward: grad: wanted an even size for up, got 5x4"):
        backward(down[:, :, :5], *none, None, [False, False, True, False])


@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    """This file again, in a process held to another instruction set."""
    run = python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
