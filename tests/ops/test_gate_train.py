"""The gate in training against plain PyTorch: alphas, gradients, running statistics; and what torch expects of it."""

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
from dynroute.models.gate import Gate
from dynroute.native import library
from dynroute.space.wiring import DOWN, KEEP, UP, Node
from tests.support import cases
from tests.support.isa import other_isas
from tests.support.processes import python

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
F64 = torch.float64
DIFFERENTIATED = (0, 1, 2, 3, 6, 7)
ACTIVATIONS = ["tanh", "sigmoid", "softmax"]
COLUMNS = {1: (KEEP,), 2: (KEEP, DOWN), 3: (KEEP, UP, DOWN)}


def torch_gate(  # type: ignore[no-untyped-def]
    x, weight, gamma, beta, mean, var, fc_weight, fc_bias, activation="tanh", columns=(KEEP,), small=False, frozen=False
) -> Tensor:
    """By torch's own modules' functions: what both the kernels and their reference are held to."""
    if small:
        x = F.interpolate(x, scale_factor=0.25, mode="bilinear", recompute_scale_factor=False)
    y = F.batch_norm(F.conv2d(x, weight), mean, var, gamma, beta, not frozen, 0.1).relu().mean((2, 3), keepdim=True)
    logits = F.conv2d(y, fc_weight, fc_bias).flatten(1)
    made = {"tanh": lambda v: v.tanh().relu(), "sigmoid": torch.sigmoid, "softmax": lambda v: v.softmax(1)}
    alphas = logits.new_zeros(len(x), 3)
    return alphas.index_copy(1, torch.tensor(columns), made[activation](logits))


def trained(run: Callable[..., Tensor], args: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """The alphas, the running statistics after the call, and all gradients of a fixed weighting of the alphas."""
    given = [a.clone().requires_grad_(i in DIFFERENTIATED) for i, a in enumerate(args)]
    alphas = run(*given, **options)
    wanted = [given[i] for i in DIFFERENTIATED]
    gradients = torch.autograd.grad((alphas * cases.normal(*alphas.shape, dtype=alphas.dtype, seed=7)).sum(), wanted)
    return [alphas.detach(), given[4], given[5], *gradients]


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Within rounding, relative to each tensor's largest value."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == e.dtype
        if e.numel():
            epsilon = 1e-4 if e.dtype == torch.float32 else 1e-11
            torch.testing.assert_close(
                a, e, rtol=epsilon, atol=epsilon * max(e.abs().max().item(), 1e-3), msg=lambda m, i=i: f"{i}: {m}"
            )


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gate(activation: str, small: bool, frozen: bool, dtype: torch.dtype) -> None:
    for c, m, h, w, gates in ((8, 4, 9, 13, 1), (16, 8, 13, 9, 2), (24, 12, 33, 34, 3), (128, 64, 9, 20, 3)):
        args = cases.gate_train(2, c, h, w, gates, m, dtype)
        options = dict(activation=activation, columns=COLUMNS[gates], small=small, frozen=frozen)
        expected = trained(torch_gate, args, **options)
        for backend in ("cpu", "reference"):
            close(trained(ops.gate_train, args, backend=backend, **options), expected)


@pytest.mark.parametrize("paths", [(False, True, False), (True, True, False), (True, True, True)])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_model_gate(activation: str, small: bool, paths: tuple[bool, bool, bool]) -> None:
    """The network's own module, plain and on the operators: alphas, gradients by name, buffers."""
    torch.manual_seed(0)
    gate = Gate(16, Node(1, 1, paths, (False, True, False)), activation, small).double()
    x = cases.normal(3, 16, 12, 20, dtype=F64)
    results = []
    for train_ops in ("reference", "cpu"):
        gate.train_ops = train_ops
        gate.load_state_dict(results[0][0] if results else gate.state_dict())
        before = {name: value.clone() for name, value in gate.state_dict().items()}
        given = x.clone().requires_grad_()
        gate.zero_grad()
        alphas = gate(given)
        (alphas * cases.normal(3, 3, dtype=F64)).sum().backward()
        values = [alphas.detach(), given.grad, *(p.grad.clone() for p in gate.parameters())]
        results.append((before, [*values, *(b.clone().double() for b in gate.buffers())]))
    assert results[0][1][0].dtype == F64 and (results[0][1][0][:, [not p for p in paths]] == 0).all()
    close(results[1][1], results[0][1])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3), c=st.integers(1, 9).map(lambda i: 8 * i), m=st.integers(1, 9).map(lambda i: 4 * i),
    h=st.integers(4, 40), w=st.integers(8, 40), columns=st.permutations((0, 1, 2)), gates=st.integers(1, 3),
    activation=st.sampled_from(ACTIVATIONS), small=st.booleans(), frozen=st.booleans(),
)  # fmt: skip
def test_any_shape(
    n: int, c: int, m: int, h: int, w: int, columns: list[int], gates: int, activation: str, small: bool, frozen: bool
) -> None:
    args = cases.gate_train(n, c, h, w, gates, m, F64)
    options = dict(activation=activation, columns=columns[:gates], small=small, frozen=frozen)
    close(trained(ops.gate_train, args, backend="cpu", **options), trained(torch_gate, args, **options))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("c, h, w", [(8, 9, 13), (24, 33, 34), (128, 9, 20)])
def test_narrow(c: int, h: int, w: int, small: bool) -> None:
    """The product in bfloat16: what the reference makes of the rounded values."""
    args = cases.gate_train(3, c, h, w, 3)
    run = functools.partial(trained, ops.gate_train, args, columns=COLUMNS[3], small=small, narrow=True)
    for a, e in zip(run(backend="cpu"), run(backend="reference"), strict=True):
        assert (a - e).norm() <= 0.01 * e.norm() + 1e-6
    raw = torch.ops.dynroute.gate_train(*args, "tanh", list(COLUMNS[3]), small, False, "", 1e-5, True)[1]
    assert raw.dtype == torch.bfloat16


def test_wide_maps() -> None:
    """Rows longer than a tile of pixels."""
    for c, h, w, small in ((8, 3, 230, False), (16, 9, 500, True), (8, 4, 1001, True)):
        args = cases.gate_train(1, c, h, w, 3, dtype=F64)
        options = dict(columns=COLUMNS[3], small=small)
        close(trained(ops.gate_train, args, backend="cpu", **options), trained(torch_gate, args, **options))


def test_means_far_from_zero() -> None:
    """Sums do not suffer from a product whose mean is a thousand times its deviation.

    What float32 loses in the product itself turns ReLUs at single pixels, so the maps' gradients are left out.
    """
    x, *rest = cases.gate_train(2, 16, 24, 20, 3)
    args = (x + 1000, *rest)
    options = dict(columns=COLUMNS[3], activation="sigmoid")
    expected = trained(torch_gate, tuple(a.double() for a in args), **options)
    actual = trained(ops.gate_train, args, backend="cpu", **options)
    for i in (0, 1, 2, 5, 6, 7, 8):
        assert (actual[i] - expected[i]).norm() < 5e-3 * expected[i].norm(), i


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("small", [False, True])
def test_no_samples(small: bool, frozen: bool) -> None:
    args = cases.gate_train(0, 16, 8, 12, 2)
    alphas, mean, var, *gradients = trained(
        ops.gate_train, args, columns=COLUMNS[2], small=small, frozen=frozen, backend="cpu"
    )
    assert alphas.shape == (0, 3) and torch.equal(mean, args[4]) and torch.equal(var, args[5])
    assert gradients[0].shape == args[0].shape and all((grad == 0).all() for grad in gradients)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("c, h, w", [(16, 60, 66), (128, 17, 12)])
def test_bits(c: int, h: int, w: int, small: bool) -> None:
    """The same bits of alphas, statistics and gradients with any number of threads."""
    args = cases.gate_train(3, c, h, w)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(trained(ops.gate_train, args, columns=COLUMNS[3], small=small, backend="cpu"))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("small", [False, True])
def test_layouts(small: bool) -> None:
    x, *rest = cases.gate_train(2, 16, 12, 10)
    options = dict(columns=COLUMNS[3], small=small, backend="cpu")
    expected = trained(ops.gate_train, (x, *rest), **options)
    for view in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        actual = trained(ops.gate_train, (view, *rest), **options)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    given = [a.clone().requires_grad_() for a in (x, *rest)]
    ops.gate_train(*given, **options).sum().backward()  # an expanded gradient


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str, small: bool, frozen: bool, backend: str) -> None:
    args = cases.gate_train(3, 8, 9, 10, 2, dtype=F64)
    flat = [args[i].clone().requires_grad_() for i in DIFFERENTIATED]

    def run(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, fc_weight: Tensor, fc_bias: Tensor) -> Tensor:
        statistics = args[4].clone(), args[5].clone()
        return ops.gate_train(
            x, weight, gamma, beta, *statistics, fc_weight, fc_bias, activation, COLUMNS[2], small, frozen,
            backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, flat, fast_mode=True)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_opcheck(activation: str, small: bool, narrow: bool) -> None:
    args = cases.gate_train(3, 8, 6, 9, 2)
    given = tuple(a.clone().requires_grad_(i in DIFFERENTIATED) for i, a in enumerate(args))
    options = (activation, [KEEP, UP], small, False, "")
    torch.library.opcheck(torch.ops.dynroute.gate_train.default, (*given, *options, 1e-5, narrow))
    made = torch.ops.dynroute.gate_train(*args, *options, 1e-5, narrow)
    x, weight, gamma, beta, _, _, fc_weight, _ = args
    for wanted in ([True, True], [False, True], [True, False], [False, False]):
        saved = (cases.normal(3, 3), x, weight, gamma, beta, fc_weight, *made, *options, narrow, wanted)
        torch.library.opcheck(torch.ops.dynroute.gate_train_backward.default, saved)


def test_pool() -> None:
    """What is kept of each sample and channel is what the reference says it is."""
    args = cases.gate_train(2, 16, 12, 9, 2, dtype=F64)
    options = ("tanh", [KEEP, UP], False, False, "", 1e-5, False)
    close(list(torch.ops.dynroute.gate_train(*args, *options)), list(ops.reference.gate_train(*args, *options)))


@pytest.mark.parametrize("small", [False, True])
def test_compile(small: bool) -> None:
    args = cases.gate_train(3, 8, 12, 8, 3)

    def run(*given: Tensor) -> Tensor:
        return 2 * ops.gate_train(*given, columns=COLUMNS[3], small=small, backend="cpu")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    close(trained(compiled, args), trained(run, args))


@pytest.mark.parametrize("small", [False, True])
def test_work_and_gradients_nobody_wants(small: bool) -> None:
    """FLOPs by the formula are the multiply-accumulates that the kernels count, and only what is wanted is done."""
    args = cases.gate_train(3, 8, 12, 9, 2)
    product = 3 * (6 if small else 108) * 8 * 4
    fc = 3 * 4 * 2
    for wants_x, wants_weights in ((True, True), (True, False), (False, True), (False, False)):
        given = [
            a.clone().requires_grad_(wants_x if i == 0 else wants_weights if i == 1 else i in DIFFERENTIATED)
            for i, a in enumerate(args)
        ]
        with FlopCounterMode(display=False) as counter:
            alphas = ops.gate_train(*given, columns=COLUMNS[2], small=small, backend="cpu")
            assert torch.ops.dynroute.last_macs()[0] == product + fc
            alphas.sum().backward()
            assert torch.ops.dynroute.last_macs()[0] == (wants_x + wants_weights) * product + 2 * fc
        assert counter.get_total_flops() == 2 * ((1 + wants_x + wants_weights) * product + 3 * fc)
        assert all((a.grad is not None) == a.requires_grad for a in given)


def test_what_is_kept() -> None:
    """x itself and the product before its BatchNorm: no other map."""
    given = [a.requires_grad_(i in DIFFERENTIATED) for i, a in enumerate(cases.gate_train(2, 16, 12, 8))]
    alphas = ops.gate_train(*given, columns=COLUMNS[3], backend="cpu")
    assert alphas.grad_fn is not None
    maps = [t for t in alphas.grad_fn.saved_tensors if t.dim() == 4 and t.shape[2:] == (12, 8)]
    assert sorted(t.shape[1] for t in maps) == [8, 16] and any(t is given[0] for t in maps)


def test_errors() -> None:
    x, weight, *rest = cases.gate_train(2, 16, 8, 4, 2)
    two = dict(columns=(1, 0))
    wrong: list[tuple[tuple, dict[str, Any], str]] = [
        ((x[0], weight, *rest), two, r"gate_train: x: wanted shape \[\*, \*, \*, \*\], got \[16, 8, 4\]"),
        ((x[:, :12], weight, *rest), two, r"gate_train: x: wanted channels in a multiple of 8, got 12"),
        ((x, weight[:, :8], *rest), two, r"gate_train: weight: wanted shape \[\*, 16, 1, 1\], got \[8, 8, 1, 1\]"),
        ((x, weight[:6], *rest), two, r"gate_train: weight: wanted channels in a multiple of 4, got 6"),
        ((x, weight[:4], *rest), two, r"gate_train: gamma, beta, running_mean, running_var: wanted shape \[4\]"),
        ((x, weight, *rest[:4], rest[4][:, :4], rest[5]), two, r"gate_train: fc_weight: wanted shape \[\*, 8, 1, 1\]"),
        ((x, weight, *rest[:5], rest[5][:1]), two, r"gate_train: fc_bias: wanted shape \[2\], got \[1\]"),
        ((x, weight, *rest), {}, r"gate_train: columns: wanted one for each of the 2 rows of fc_weight, got \[1\]"),
        ((x, weight, *rest), dict(columns=(1, 1)), r"columns: wanted one to three different ones of 0, 1, 2, got"),
        ((x, weight, *rest), dict(columns=(1, 3)), r"columns: wanted one to three different ones of 0, 1, 2, got"),
        ((x[..., :3], weight, *rest), dict(small=True, **two), r"gate_train: x: wanted a map of at least 4x4, got"),
        (
            (x, weight, *rest),
            dict(activation="fixed", **two),
            r"activation: wanted 'tanh', 'sigmoid' or 'softmax', got",
        ),
        ((x.bfloat16(), weight, *rest), two, r"gate_train: backend .cpu. cannot be used: torch.bfloat16 is not"),
    ]
    for args, options, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            ops.gate_train(*args, **options, backend="cpu")
    with pytest.raises(ValueError, match="gate_train: activation: wanted 'tanh', 'sigmoid' or 'softmax', got 'fixed'"):
        ops.gate_train(x, weight, *rest, activation="fixed", columns=(1, 0), backend="reference")


@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    """This file again, in a process held to another instruction set."""
    run = python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
