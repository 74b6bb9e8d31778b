"""The operators that train, against plain PyTorch: outputs, gradients, running statistics; and what torch expects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops
from dynroute.native import library
from tests.support import cases
from tests.support.isa import other_isas
from tests.support.processes import python
from tests.support.trees import copies, leaves

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
F64 = torch.float64
OPEN = torch.tensor([True, False, True])
SEPCONV, TRANSFORM = 5, 4  # how many arguments from the first on are differentiated


def torch_sepconv(x, depthwise, pointwise, gamma, beta, mean, var, stride=1, residual=False, final_relu=False):  # type: ignore[no-untyped-def]
    """By torch's own BatchNorm: what both the kernels and their reference are held to."""
    y = x
    for k, (dw, pw) in enumerate(zip(depthwise, pointwise)):
        y = F.conv2d(y, dw, padding=1, stride=stride if k == 0 else 1, groups=y.shape[1])
        y = F.batch_norm(F.conv2d(y, pw), mean[k], var[k], gamma[k], beta[k], True, 0.1)
        y = y.relu() if k < len(depthwise) - 1 else y
    y = y + x if residual else y
    return y.relu() if final_relu else y


def torch_transform(x, weight, gamma, beta, mean, var, stride=1, relu_input=True):  # type: ignore[no-untyped-def]
    y = F.conv2d(x.relu() if relu_input else x, weight, stride=stride)
    return F.batch_norm(y, mean, var, gamma, beta, True, 0.1).relu()


def trained(run: Callable[..., Tensor], args: tuple, differentiated: int, **options: Any) -> list[Tensor]:
    """The output, the running statistics after the call, and all gradients of a fixed weighting of the output."""
    given = [copies(a, i < differentiated) for i, a in enumerate(args)]
    out = run(*given, **options)
    wanted = leaves(given[:differentiated])
    gradients = torch.autograd.grad((out * cases.normal(*out.shape, dtype=out.dtype, seed=7)).sum(), wanted)
    return [out.detach(), *leaves(given[differentiated:]), *gradients]


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Within rounding, relative to each tensor's largest value."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == e.dtype
        if e.numel():
            epsilon = 1e-4 if e.dtype == torch.float32 else 1e-11
            torch.testing.assert_close(
                a, e, rtol=epsilon, atol=epsilon * max(e.abs().max().item(), 1e-3), msg=lambda m, i=i: f"{i}: {m}"
            )


def alike(actual: list[Tensor], expected: list[Tensor]) -> None:
    """On the whole: where a value rounds to another bfloat16, a ReLU may let through what it held back."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert (a - e).norm() <= 0.01 * e.norm() + 1e-6, f"{i}: off by {(a - e).norm() / e.norm():.2g} of its norm"


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("c, h, w", [(8, 1, 2), (16, 7, 5), (24, 13, 9), (64, 33, 34), (128, 9, 20), (40, 5, 140)])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_sepconv(c: int, h: int, w: int, stages: int, dtype: torch.dtype) -> None:
    args = cases.sepconv_train(2, c, h, w, stages, dtype=dtype)
    for options in (dict(residual=True, final_relu=True), dict(residual=True), dict(stride=2), dict(final_relu=True)):
        if options.get("stride") == 2 and h == 1:
            continue  # two pixels left: their deviation is as good as none
        expected = trained(torch_sepconv, args, SEPCONV, **options)
        for backend in ("cpu", "reference"):
            close(trained(ops.sepconv_train, args, SEPCONV, backend=backend, **options), expected)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("c, out, h, w", [(8, 4, 3, 2), (16, 32, 7, 5), (64, 32, 33, 34), (40, 80, 13, 9)])
def test_transform(c: int, out: int, h: int, w: int, dtype: torch.dtype) -> None:
    args = cases.transform_train(2, c, h, w, out, dtype)
    for options in (dict(), dict(stride=2), dict(relu_input=False)):
        expected = trained(torch_transform, args, TRANSFORM, **options)
        for backend in ("cpu", "reference"):
            close(trained(ops.transform_train, args, TRANSFORM, backend=backend, **options), expected)


@pytest.mark.parametrize("open", [None, OPEN])
@pytest.mark.parametrize("c, h, w", [(8, 3, 2), (24, 13, 9), (64, 33, 34), (40, 5, 140)])
def test_narrow(c: int, h: int, w: int, open: Tensor | None) -> None:
    """Raw outputs in bfloat16: what the reference makes of the rounded values."""
    args = cases.sepconv_train(3, c, h, w)
    for options in (dict(residual=True, final_relu=True), dict(stride=2)):
        run = functools.partial(trained, ops.sepconv_train, args, SEPCONV, open=open, narrow=True, **options)
        alike(run(backend="cpu"), run(backend="reference"))
    args = cases.transform_train(3, c, h, w, 2 * c)
    run = functools.partial(trained, ops.transform_train, args, TRANSFORM, open=open, narrow=True)
    alike(run(backend="cpu"), run(backend="reference"))


def test_narrow_is_kept() -> None:
    args = cases.sepconv_train(3, 8, 6, 5)
    _, raw, stats = torch.ops.dynroute.sepconv_train(*args, OPEN, 1, True, True, False, "", 1e-5, True)
    assert raw.dtype == torch.bfloat16 and stats.dtype == torch.float32 and (raw.unflatten(0, (2, 3))[:, 1] == 0).all()
    _, wide, _ = torch.ops.dynroute.sepconv_train(*args, OPEN, 1, True, True, False, "", 1e-5, False)
    assert torch.equal(raw[:3], wide[:3].bfloat16())  # the first stage's; the second's inputs differ
    _, raw, _ = torch.ops.dynroute.transform_train(
        *cases.transform_train(3, 8, 6, 5, 16), None, 1, True, False, "", 1e-5, True
    )
    assert raw.dtype == torch.bfloat16
    for op, args in (
        ("sepconv_train", cases.sepconv_train(3, 8, 6, 5, dtype=F64)),
        ("transform_train", cases.transform_train(3, 8, 6, 5, 16, F64)),
    ):
        with pytest.raises(RuntimeError, match=rf"{op}: narrow: wanted float32 maps, got float64"):
            getattr(ops, op)(*args, narrow=True, backend="cpu")


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3), c=st.integers(1, 9).map(lambda i: 8 * i), out=st.integers(1, 9).map(lambda i: 8 * i),
    h=st.integers(2, 40), w=st.integers(3, 40), stages=st.integers(1, 3), stride=st.integers(1, 2), relu=st.booleans(),
)  # fmt: skip
def test_any_shape(n: int, c: int, out: int, h: int, w: int, stages: int, stride: int, relu: bool) -> None:
    args = cases.sepconv_train(n, c, h, w, stages, out, F64)
    options = dict(stride=stride, final_relu=relu)
    expected = trained(torch_sepconv, args, SEPCONV, **options)
    close(trained(ops.sepconv_train, args, SEPCONV, backend="cpu", **options), expected)
    args = cases.transform_train(n, c, h, w, out, F64)
    expected = trained(torch_transform, args, TRANSFORM, stride=stride)
    close(trained(ops.transform_train, args, TRANSFORM, backend="cpu", stride=stride), expected)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("mask", ["absent", "none", "some", "all"])
def test_open_samples(n: int, mask: str, frozen: bool) -> None:
    """Closed samples are not read, give zeros, take no part in statistics and get no gradient."""
    open = cases.masks(n)[mask]
    calls = (
        (ops.sepconv_train, cases.sepconv_train(n, 16, 13, 9, dtype=F64), SEPCONV, dict(residual=True)),
        (ops.transform_train, cases.transform_train(n, 16, 13, 9, 32, F64), TRANSFORM, dict(stride=2)),
    )
    for run, (x, *rest), differentiated, options in calls:
        if open is not None:
            x = torch.where(open.view(-1, 1, 1, 1), x, float("nan"))
        results = [
            trained(run, (x, *rest), differentiated, open=open, frozen=frozen, backend=backend, **options)
            for backend in ("cpu", "reference")
        ]
        close(*results)
        if open is not None:
            grad_x = results[0][1 + len(leaves(rest[differentiated - 1 :]))]
            assert grad_x.shape == x.shape and (grad_x[~open] == 0).all() and (results[0][0][~open] == 0).all()


def test_no_samples() -> None:
    args = cases.sepconv_train(0, 16, 5, 4)
    out, *rest = trained(ops.sepconv_train, args, SEPCONV, backend="cpu")
    assert out.shape == (0, 16, 5, 4) and all(torch.equal(a, b) for a, b in zip(rest, leaves(args[SEPCONV:])))
    assert all((grad == 0).all() for grad in rest[len(leaves(args[SEPCONV:])) :])


@pytest.mark.parametrize("c, h, w", [(16, 40, 33), (128, 17, 12)])
def test_bits(c: int, h: int, w: int) -> None:
    """The same bits of outputs, statistics and gradients with any number of threads."""
    calls = (
        (ops.sepconv_train, cases.sepconv_train(3, c, h, w), SEPCONV),
        (ops.transform_train, cases.transform_train(3, c, h, w, c // 2), TRANSFORM),
    )
    before = torch.get_num_threads()
    try:
        for run, args, differentiated in calls:
            results = []
            for threads in (1, 2, 3, 2):
                torch.set_num_threads(threads)
                results.append(trained(run, args, differentiated, backend="cpu"))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    finally:
        torch.set_num_threads(before)


def test_layouts() -> None:
    x, *rest = cases.sepconv_train(2, 16, 12, 10)
    expected = trained(ops.sepconv_train, (x, *rest), SEPCONV, backend="cpu")
    for view in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        actual = trained(ops.sepconv_train, (view, *rest), SEPCONV, backend="cpu")
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    assert expected[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("stages, stride, residual", [(1, 1, True), (2, 1, True), (3, 2, False)])
def test_gradcheck(backend: str, frozen: bool, stages: int, stride: int, residual: bool) -> None:
    args = cases.sepconv_train(3, 8, 4, 3, stages, dtype=F64)
    flat = [t.clone().requires_grad_() for t in leaves(args[:SEPCONV])]

    def sepconv(x: Tensor, *flat: Tensor) -> Tensor:
        lists = [list(flat[i * stages : (i + 1) * stages]) for i in range(4)]
        return ops.sepconv_train(
            x, *lists, *copies(args[SEPCONV:]), OPEN, stride, residual, frozen=frozen, backend=backend
        )

    assert torch.autograd.gradcheck(sepconv, flat, fast_mode=True)
    args = cases.transform_train(3, 8, 5, 3, 12, F64)
    flat = [t.clone().requires_grad_() for t in args[:TRANSFORM]]

    def transform(*given: Tensor) -> Tensor:
        return ops.transform_train(*given, *copies(args[TRANSFORM:]), OPEN, stride, frozen=frozen, backend=backend)

    assert torch.autograd.gradcheck(transform, flat, fast_mode=True)


@pytest.mark.parametrize("open", [None, OPEN])
def test_opcheck(open: Tensor | None) -> None:
    args = cases.sepconv_train(3, 8, 6, 5)
    given = [copies(a, i < SEPCONV) for i, a in enumerate(args)]
    for narrow in (False, True):
        torch.library.opcheck(
            torch.ops.dynroute.sepconv_train.default, (*given, open, 1, True, True, False, "", 1e-5, narrow)
        )
    args = cases.transform_train(3, 8, 6, 5, 16)
    given = [copies(a, i < TRANSFORM) for i, a in enumerate(args)]
    for narrow in (False, True):
        options = (open, 2, True, False, "", 1e-5, narrow)
        torch.library.opcheck(torch.ops.dynroute.transform_train.default, (*given, *options))


def test_compile() -> None:
    cell, down = cases.sepconv_train(3, 8, 6, 5), cases.transform_train(3, 8, 6, 5, 16)

    def both(x: Tensor, *rest: Any, open: Tensor) -> Tensor:
        y = ops.sepconv_train(x, *rest[:6], open, residual=True, backend="cpu")
        return ops.transform_train(y, *rest[6:], open, stride=2, backend="cpu")

    args = (*cell, *down[1:])
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    close(trained(compiled, args, SEPCONV, open=OPEN), trained(both, args, SEPCONV, open=OPEN))


def test_flops_and_gradients_nobody_wants() -> None:
    x, *rest = cases.sepconv_train(3, 8, 6, 5)
    pixels, taps, products = 3 * 30, 2 * 8 * 9, 2 * 8 * 8

    def flops(wants_x: bool, wants_weights: bool) -> int:
        given = [x.clone().requires_grad_(wants_x), *(copies(r, wants_weights and i < 4) for i, r in enumerate(rest))]
        with FlopCounterMode(display=False) as counter:
            ops.sepconv_train(*given, backend="cpu").sum().backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves(given))
        return counter.get_total_flops()

    forward = 2 * pixels * (taps + products)
    assert flops(True, True) == forward + 2 * pixels * (2 * products + 3 * taps)
    assert flops(True, False) == forward + 2 * pixels * (products + taps)


def test_errors() -> None:
    x, dw, pw, *norms = cases.sepconv_train(2, 16, 6, 4)
    wrong = [
        ((x[0], dw, pw, *norms), {}, r"sepconv_train: x: wanted shape \[\*, \*, \*, \*\], got \[16, 6, 4\]"),
        ((x[:, :12], dw, pw, *norms), {}, r"sepconv_train: x: wanted channels in a multiple of 8, got 12"),
        ((x, dw, pw[:1], *norms), {}, r"sepconv_train: pointwise: wanted as many as depthwise \(2\), got 1"),
        ((x, dw, pw, norms[0][:1], *norms[1:]), {}, r"gamma, beta, running_mean, running_var: wanted as many"),
        ((x, dw, pw, *norms), dict(stride=3), r"sepconv_train: stride: wanted 1 or 2, got 3"),
        ((x, dw, pw, *norms), dict(open=OPEN), r"sepconv_train: open: wanted shape \[2\], got \[3\]"),
        ((x, dw, pw, *norms), dict(stride=2, residual=True), r"sepconv_train: residual: wanted an output of x's shape"),
        ((x.bfloat16(), dw, pw, *norms), {}, r"sepconv_train: backend .cpu. cannot be used: torch.bfloat16 is not"),
    ]
    for args, options, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            ops.sepconv_train(*args, **options, backend="cpu")
    x, weight, *norm = cases.transform_train(2, 16, 6, 4, 8)
    with pytest.raises(
        RuntimeError, match=r"transform_train: weight: wanted shape \[\*, 16, 1, 1\], got \[8, 8, 1, 1\]"
    ):
        ops.transform_train(x, weight[:, :8], *norm, backend="cpu")


@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    """This file again, in a process held to another instruction set."""
    run = python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
