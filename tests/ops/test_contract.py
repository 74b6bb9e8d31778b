"""What torch expects of an operator: opcheck, gradients, torch.compile, torch.export, FLOPs; and clear errors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops, planner
from dynroute.native import library
from tests.support import cases

native = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))

F64 = torch.float64
OPEN = torch.tensor([True, False, True])
BACKENDS = ["reference", pytest.param("cpu", marks=native)]


def operator_calls() -> dict[str, tuple]:
    return {
        "sepconv": (*cases.sepconv(3, 8, 6, 5), OPEN, 1, True, True),
        "transform": (*cases.transform(3, 8, 6, 5, 16), OPEN, 2),
        "gate": (*cases.gate(3, 8, 6, 5), "sigmoid", True, OPEN),
        "aggregate": cases.aggregate(3, 8, 6, 4),
        "route": cases.route(3),
    }


@native
@pytest.mark.parametrize("name", ["sepconv", "transform", "gate", "aggregate", "route"])
def test_opcheck(name: str) -> None:
    args = operator_calls()[name]

    def differentiable(arg: object) -> object:
        if isinstance(arg, list):
            return [differentiable(a) for a in arg]
        return arg.clone().requires_grad_() if isinstance(arg, Tensor) and arg.is_floating_point() else arg

    torch.library.opcheck(getattr(torch.ops.dynroute, name).default, tuple(differentiable(a) for a in args))


def smooth(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stages, stride, residual", [(1, 1, True), (2, 1, True), (2, 2, False)])
def test_gradients_of_sepconv(backend: str, stages: int, stride: int, residual: bool) -> None:
    x, *weights = cases.sepconv(2, 8, 4, 3, stages, dtype=F64)
    open = torch.tensor([True, False])

    def run(x: Tensor, *flat: Tensor) -> Tensor:
        parts = [list(flat[i * stages : (i + 1) * stages]) for i in range(4)]
        return ops.sepconv(x, *parts, open, stride, residual, True, backend=backend)

    inputs = smooth([x, *[w for part in weights for w in part]])
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_transform(backend: str, stride: int) -> None:
    inputs = smooth(list(cases.transform(2, 8, 5, 3, 12, F64)))
    assert torch.autograd.gradcheck(lambda *a: ops.transform(*a, None, stride, backend=backend), inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize("small", [False, True])
def test_gradients_of_gate(backend: str, activation: str, small: bool) -> None:
    inputs = smooth(list(cases.gate(2, 8, 8, 4, dtype=F64)))
    assert torch.autograd.gradcheck(lambda *a: ops.gate(*a, activation, small, backend=backend), inputs, fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sources", ["k", "du", "dku"])
def test_gradients_of_aggregate(backend: str, sources: str) -> None:
    args = cases.aggregate(2, 4, 4, 6, sources, F64)
    there = [a is not None for a in args]

    def run(*given: Tensor) -> Tensor:
        left = iter(given)
        return ops.aggregate(*[next(left) if t else None for t in there], backend=backend)

    assert torch.autograd.gradcheck(run, smooth([a for a in args if a is not None]), fast_mode=True)


@native
def test_gradients_of_route() -> None:
    alphas, *rest = cases.route(3, F64)
    inputs = alphas.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: ops.route(a, *rest, backend="cpu").alphas, [inputs], fast_mode=True)


class Everything(torch.nn.Module):
    """All operators in a row."""

    def __init__(self) -> None:
        super().__init__()
        _, *self.cell = cases.sepconv(3, 8, 6, 4)
        _, *self.down = cases.transform(3, 8, 6, 4, 16)
        _, *self.gates = cases.gate(3, 16, 3, 2)
        *_, self.path_exists, self.slots = cases.route(3)

    def forward(self, x: Tensor, open: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = ops.sepconv(x, *self.cell, open, residual=True, final_relu=True)
        z = ops.transform(y, *self.down, open, stride=2)
        alphas = ops.gate(z, *self.gates)
        routes = ops.route(alphas[:, None].expand(-1, 4, -1), open[:, None].expand(-1, 4), self.path_exists, self.slots)
        return ops.aggregate(y, x, None, routes.alphas[:, 1]), alphas, routes.present


@native
def test_compile() -> None:
    model, x = Everything(), cases.normal(3, 8, 6, 4)
    expected = model(x, OPEN)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(compiled(x, OPEN), expected):
        assert torch.equal(actual, wanted)

    def loss(run: Callable, x: Tensor) -> Tensor:
        return torch.autograd.grad(run(x, OPEN)[0].square().sum(), x)[0]

    torch.testing.assert_close(loss(compiled, x.clone().requires_grad_()), loss(model, x.clone().requires_grad_()))


@native
def test_compile_with_inductor() -> None:
    x, *weights = cases.sepconv(2, 8, 6, 4)
    run = torch.compile(lambda x: 2 * ops.sepconv(x + 1, *weights, residual=True), fullgraph=True)
    torch.testing.assert_close(run(x), 2 * ops.sepconv(x + 1, *weights, residual=True))


@native
def test_export() -> None:
    model, x = Everything(), cases.normal(3, 8, 6, 4)
    exported = torch.export.export(model, (x, OPEN))
    for actual, wanted in zip(exported.module()(x, OPEN), model(x, OPEN)):
        assert torch.equal(actual, wanted)


@native
def test_flops() -> None:
    calls = operator_calls()
    samples = int(OPEN.sum())
    expected = {
        "sepconv": 2 * samples * 30 * 2 * 8 * (9 + 8),
        "transform": 2 * samples * 9 * 8 * 16,
        "gate": 2 * samples * 4 * (1 * 8 + 3),
        "aggregate": 0,
    }
    for name, flops in expected.items():
        with FlopCounterMode(display=False) as counter:
            getattr(torch.ops.dynroute, name)(*calls[name])
        assert counter.get_total_flops() == flops, name


@native
def test_executed_macs() -> None:
    """Counted for open samples only, and by the tiles: one that is left out is missed."""
    x, *weights = cases.sepconv(3, 8, 70, 40)
    ops.sepconv(x, *weights, OPEN, backend="cpu")
    own, halo = torch.ops.dynroute.last_macs()
    assert own == 2 * 70 * 40 * 2 * 8 * (9 + 8)
    if planner.why_not() is None:
        plan = planner.plan(2, 8, 8, 70, 40, samples=2, threads=torch.get_num_threads())
        borders = -(-70 // plan.band_rows) - 1 if plan.fused else 0
        assert halo == 2 * borders * 2 * 40 * 8 * (9 + 8)  # at each border of bands, two rows of the first stage
    try:
        torch.ops.dynroute.debug_skip_tile(0)
        ops.sepconv(x, *weights, OPEN, backend="cpu")
        assert torch.ops.dynroute.last_macs()[0] < own
    finally:
        torch.ops.dynroute.debug_skip_tile(-1)
    x, *rest = cases.transform(3, 8, 7, 5, 16)
    ops.transform(x, *rest, OPEN, 2, backend="cpu")
    assert torch.ops.dynroute.last_macs() == [2 * 4 * 3 * 8 * 16, 0]
    x, *rest = cases.gate(3, 8, 7, 5)
    ops.gate(x, *rest, present=OPEN, backend="cpu")
    assert torch.ops.dynroute.last_macs() == [2 * (7 * 5 * 8 * 4 + 4 * 3), 0]


@native
def test_errors() -> None:
    x, dw, pw, scale, shift = cases.sepconv(2, 16, 6, 4)
    wrong = [
        ((x[0], dw, pw, scale, shift), r"sepconv: x: wanted shape \[\*, \*, \*, \*\], got \[16, 6, 4\]"),
        (
            (x.half(), dw, pw, scale, shift),
            r"sepconv: backend .cpu. cannot be used: torch.float16 is not float32 or float64",
        ),
        ((x[:, :12], dw, pw, scale, shift), r"sepconv: x: wanted channels in a multiple of 8, got 12"),
        ((x, dw[::-1], [pw[0], pw[1][:8]], scale, shift), r"sepconv: scale\[1\]: wanted shape \[8\], got \[16\]"),
        (
            (x, [dw[0], dw[1][:8]], pw, scale, shift),
            r"depthwise\[1\]: wanted shape \[16, 1, 3, 3\], got \[8, 1, 3, 3\]",
        ),
        ((x, dw, pw[:1], scale, shift), r"wanted as many as depthwise \(2\), got 1, 2, 2"),
        ((x, dw, pw, [s.double() for s in scale], shift), r"scale\[0\]: wanted float32, got float64"),
        ((x, dw, pw, scale, shift, OPEN), r"sepconv: open: wanted shape \[2\], got \[3\]"),
        ((x, dw, pw, scale, shift, None, 3), r"sepconv: stride: wanted 1 or 2, got 3"),
        ((x, dw, pw, scale, shift, None, 2, True), r"sepconv: residual: wanted an output of x's shape"),
    ]
    for args, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            ops.sepconv(*args, backend="cpu")
    with pytest.raises(RuntimeError, match=r"transform: weight: wanted shape \[\*, 16, 1, 1\], got \[16, 8, 1, 1\]"):
        ops.transform(x, pw[0][:, :8], scale[0], shift[0], backend="cpu")
    with pytest.raises(RuntimeError, match=r"gate: activation: wanted 'tanh', 'sigmoid' or 'softmax', got 'relu'"):
        ops.gate(*cases.gate(1, 8, 4, 4), "relu", backend="cpu")
    with pytest.raises(RuntimeError, match=r"gate: x: wanted a map of at least 4x4"):
        ops.gate(*cases.gate(1, 8, 3, 4), small=True, backend="cpu")
    down, keep, up, alphas = cases.aggregate(1, 8, 6, 4)
    with pytest.raises(RuntimeError, match=r"aggregate: up: wanted shape \[1, 8, 3, 2\], got \[1, 8, 3, 1\]"):
        ops.aggregate(down, keep, up[..., :1], alphas, backend="cpu")
    with pytest.raises(RuntimeError, match=r"aggregate: up: wanted an output of even size, got 5x4"):
        ops.aggregate(down[:, :, :5], None, up, alphas, backend="cpu")
    alphas, present, exists, slots = cases.route(2)
    with pytest.raises(RuntimeError, match=r"route: slots: wanted int32, got int64"):
        ops.route(alphas, present, exists, slots.long(), backend="cpu")


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    args = cases.transform(1, 8, 3, 3, 8)
    for backend, reason in (("cuda", ""), ("triton", "triton ")):
        with pytest.raises(RuntimeError, match=f"transform: backend '{backend}' cannot be used: {reason}"):
            ops.transform(*args, backend=backend)
    with pytest.raises(
        ValueError,
        match="transform: backend: wanted one of auto, cuda, triton, cpu, reference, got 'tpu'",
    ):
        ops.transform(*args, backend="tpu")
    half = [a.bfloat16() for a in args]
    assert ops.transform(*half).dtype == torch.bfloat16  # auto: the reference
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot be used"):
        ops.transform(*half, backend="cpu")
