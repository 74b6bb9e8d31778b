"""The operators on a GPU, against float64 on the CPU: what the emulator has shown, and what it cannot."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dynroute import ops
from dynroute.ops import reference
from tests.support import cases
from tests.support.backends import NAMESPACE, on_a_gpu
from tests.support.rounding import check_error
from tests.support.trees import to

pytestmark = on_a_gpu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPEN = torch.tensor([True, False, True])


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward is PyTorch's convolutions, which round to 10 bits by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def calls() -> dict[str, tuple[str, tuple]]:
    """By name: the operator and its arguments in float32 on the CPU."""
    found: dict[str, tuple[str, tuple]] = {}
    for c, h, w, stages in ((8, 3, 5, 1), (64, 67, 129, 2), (256, 16, 32, 3)):
        found[f"sepconv {c}"] = "sepconv", (*cases.sepconv(3, c, h, w, stages), OPEN, 1, True, True)
        found[f"sepconv {c} stride 2"] = "sepconv", (*cases.sepconv(3, c, h, w, stages), None, 2, False, True)
        found[f"transform {c}"] = "transform", (*cases.transform(3, c, h, w, 2 * c), OPEN, 2)
        found[f"transform {c} wide"] = "transform", (*cases.transform(3, c, h, w, c), None, 1)
        fc = cases.normal(3, c // 2, 1, 1, scale=c**-0.5, seed=4), 1 + cases.normal(3, seed=5).abs()
        gate = (*cases.transform(3, c, 4 * h, w, c // 2), *fc)
        found[f"gate {c}"] = "gate", (*gate, "softmax", False, OPEN)
        found[f"gate {c} small"] = "gate", (*gate, "tanh", True, None)
        found[f"aggregate {c}"] = "aggregate", tuple(cases.aggregate(3, c, 2 * h, 2 * w, "dku"))
    return found


each = pytest.mark.parametrize("name", list(calls()))


@each
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_parity(name: str, dtype: torch.dtype, backend: str) -> None:
    op, args = calls()[name]
    args = to(args, dtype)
    check_error(op, args, getattr(ops, op)(*to(args, "cuda"), backend=backend).cpu())


@pytest.mark.parametrize("n", [0, 1, 70, 3000])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_route(n: int, dtype: torch.dtype, backend: str) -> None:
    alphas, *rest = cases.route(n)
    alphas = alphas.to(dtype)
    got = ops.route(alphas.cuda(), *to(rest, "cuda"), backend=backend)
    for a, b in zip(got, reference.route(alphas.float(), *rest), strict=True):
        assert torch.equal(a.cpu().to(b.dtype), b)


@each
def test_gradients(name: str, backend: str) -> None:
    op, args = calls()[name]
    found = []
    for device, kernels in (("cuda", backend), ("cpu", "reference")):
        dtype = torch.float32 if device == "cuda" else torch.float64
        given = to(to(args, dtype), device)
        leaves = [
            v for v in itertools.chain(*(v if isinstance(v, list) else [v] for v in given)) if isinstance(v, Tensor)
        ]
        leaves = [v.requires_grad_() for v in leaves if v.is_floating_point()]
        out = getattr(ops, op)(*given, backend=kernels)
        weights = cases.normal(*out.shape, seed=7).to(device, dtype)
        found.append([g.double().cpu() for g in torch.autograd.grad((out * weights).sum(), leaves)])
    for a, b in zip(*found, strict=True):
        # a ReLU's sign at a value near 0 hangs on rounding
        assert (a - b).norm() <= 1e-2 * b.norm() + 1e-6


@each
def test_autocast_compile_and_graphs(name: str, backend: str) -> None:
    op, args = calls()[name]
    args = to(args, "cuda")

    def run(*given: Any) -> Tensor:
        return getattr(ops, op)(*given, backend=backend)

    with torch.autocast("cuda", torch.bfloat16):
        lowered = run(*args)
    assert torch.equal(lowered, run(*to(args, torch.bfloat16)))
    plain = run(*args)
    torch.compiler.reset()  # of one function only so many versions are compiled
    assert torch.equal(torch.compile(run, fullgraph=True, backend="aot_eager")(*args), plain)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = run(*args)
    recorded.zero_()
    graph.replay()
    assert torch.equal(recorded, plain)


@each
def test_streams_and_no_wait(name: str, backend: str) -> None:
    """Work goes to the current stream, and the host is not held up."""
    op, args = calls()[name]
    args = to(args, "cuda")
    job: Callable[..., Tensor] = partial(getattr(ops, op), backend=backend)
    wanted = job(*args)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            got = job(*args)
            assert not stream.query(), "the call waited for what was queued before it"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(got, wanted)


@each
def test_export(name: str, backend: str) -> None:
    """An exported program computes the same bits, on the device."""
    op, args = calls()[name]
    args = to(args, "cuda")

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return getattr(ops, op)(x, *args[1:], backend=backend)

    exported = torch.export.export(Model(), (args[0],))
    assert any(f"{NAMESPACE[backend]}.{op}" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(args[0]), Model()(args[0]))


@pytest.mark.parametrize("k, h, w, factor", [(19, 64, 125, 4), (11, 33, 34, 8), (150, 16, 31, 4), (1000, 5, 6, 3)])
def test_loss(k: int, h: int, w: int, factor: int, backend: str) -> None:
    """Loss and gradient; captured into a graph; a label that is no class shows."""
    logits, labels = cases.upsampled_cross_entropy(2, k, h, w, factor)
    leaf = logits.cuda().requires_grad_()
    exact = logits.double().requires_grad_()
    true = ops.upsampled_cross_entropy(exact, labels, factor, backend="reference")
    with torch.autocast("cuda", torch.bfloat16):
        loss = ops.upsampled_cross_entropy(leaf, labels.cuda(), factor, backend=backend)
    (gradient,), (true_gradient,) = torch.autograd.grad(loss, leaf), torch.autograd.grad(true, exact)
    assert loss.dtype == torch.float32 and abs(loss.item() - true.item()) <= 1e-6 * true.item()
    assert (gradient.double().cpu() - true_gradient).abs().max() <= 2e-6 * true_gradient.abs().max()
    given = leaf.detach(), labels.cuda()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = ops.upsampled_cross_entropy(*given, factor, backend=backend)
    graph.replay()
    assert torch.equal(recorded, loss)
    given[1][0, 0, 0] = k + 1
    graph.replay()
    assert recorded.isnan()
