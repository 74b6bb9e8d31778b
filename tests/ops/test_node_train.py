"""node_train against plain PyTorch: what a node hands on, gradients, running statistics; and what torch expects."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dynroute import ops
from dynroute.models.config import NetworkConfig
from dynroute.models.node import RoutedNode
from dynroute.native import library
from dynroute.space.wiring import build_space
from tests.support import cases
from tests.support.isa import other_isas
from tests.support.processes import python
from tests.support.trees import copies, leaves

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
F64 = torch.float64
DIFFERENTIATED = 8  # the arguments from the first on that have a gradient

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bridge": 0.6},
    {"skip": True},
    {"skip": True, "bridge": 0.6},
    {"skip": True, "frozen": True},
    {"frozen": True},
    {"factor": torch.tensor([0.0, 2.0, 1.25, 1.25], dtype=F64)},
    {"factor": torch.tensor([0.0, 2.0, 1.25, 1.25], dtype=F64), "skip": True},
]


def macs() -> int:
    """Multiply-accumulates that the last call's kernels counted."""
    return torch.ops.dynroute.last_macs()[0]


def trained(args: tuple, **options: Any) -> list[Tensor]:
    """What the node hands on, the running statistics after the call, and all gradients of a fixed weighting."""
    given = [copies(a, i < DIFFERENTIATED) for i, a in enumerate(args)]
    outputs = leaves(ops.node_train(*given, **options))
    loss = sum((o * cases.normal(*o.shape, dtype=o.dtype, seed=7 + i)).sum() for i, o in enumerate(outputs))
    wanted = leaves(given[:DIFFERENTIATED])
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients)]
    return [*(o.detach() for o in outputs), *leaves(given[DIFFERENTIATED:]), *gradients]


def close(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Within rounding, relative to each tensor's largest value."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == e.dtype
        if e.numel():
            epsilon = 2e-4 if e.dtype == torch.float32 else 1e-11
            torch.testing.assert_close(
                a, e, rtol=epsilon, atol=epsilon * max(e.abs().max().item(), 1e-3), msg=lambda m, i=i: f"{i}: {m}"
            )


def alike(actual: list[Tensor], expected: list[Tensor]) -> None:
    """On the whole: where a value rounds to another bfloat16, a ReLU may let through what it held back."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert (a - e).norm() <= 0.01 * e.norm() + 1e-6, f"{i}: off by {(a - e).norm() / e.norm():.2g} of its norm"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "all")
@pytest.mark.parametrize("paths", ["ud", "u", "d", ""])
@pytest.mark.parametrize("c, h, w", [(8, 2, 2), (16, 7, 5), (64, 13, 9), (24, 5, 141), (128, 10, 16)])
def test_matches_the_reference(c: int, h: int, w: int, paths: str, options: dict[str, Any]) -> None:
    args = cases.node_train(4, c, h, w, 2, paths, F64)
    close(trained(args, backend="cpu", **options), trained(args, backend="reference", **options))


@pytest.mark.parametrize("paths", ["ud", "d"])
@pytest.mark.parametrize("c, h, w", [(16, 7, 5), (64, 33, 34), (256, 8, 8), (512, 4, 4)])
def test_float32(c: int, h: int, w: int, paths: str) -> None:
    args = cases.node_train(4, c, h, w, 2, paths)
    close(trained(args, backend="cpu"), trained(args, backend="reference"))


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"frozen": True}], ids=lambda o: "-".join(o) or "all")
@pytest.mark.parametrize("paths", ["ud", "d", ""])
@pytest.mark.parametrize("c, h, w", [(8, 2, 2), (24, 5, 41), (64, 13, 9), (256, 8, 8)])
def test_narrow(c: int, h: int, w: int, paths: str, options: dict[str, Any]) -> None:
    """Raw outputs in bfloat16: what the reference makes of the rounded values."""
    args = cases.node_train(4, c, h, w, 2, paths)
    run = functools.partial(trained, args, narrow=True, **options)
    alike(run(backend="cpu"), run(backend="reference"))


def test_narrow_is_kept() -> None:
    args = cases.node_train(3, 8, 6, 5)
    made = torch.ops.dynroute.node_train(*args, None, 0.0, True, False, "", 1e-5, True)
    *maps, raw, up_raw, down_raw, stats = made
    assert all(kept.dtype == torch.bfloat16 for kept in (raw, up_raw, down_raw))
    assert all(of.dtype == torch.float32 for of in (*maps, stats))
    with pytest.raises(RuntimeError, match="node_train: narrow: wanted float32 maps, got float64"):
        ops.node_train(*cases.node_train(3, 8, 6, 5, dtype=F64), narrow=True, backend="cpu")


@pytest.mark.parametrize("bridge", [0.0, 0.8])
@pytest.mark.parametrize("scale", [0, 1, 3])
@pytest.mark.parametrize("cell", ["sepconv1", "sepconv", "sepconv3"])
def test_matches_the_model(cell: str, scale: int, bridge: float) -> None:
    """The module in plain PyTorch, by torch's own BatchNorm, is what the operator is held to."""
    config = NetworkConfig(layers=6, channels=8, num_classes=3, cell=(cell,))
    node = RoutedNode(build_space(6)[4][scale], config).double().train()
    plain = RoutedNode(build_space(6)[4][scale], config).double().train()
    plain.load_state_dict(node.state_dict())
    x, alphas = cases.node_train(4, 8 << scale, 6, 8, dtype=F64)[:2]
    results = []
    for module, choice in ((plain, "reference"), (node, "cpu")):
        for part in module.modules():
            if hasattr(part, "train_ops"):
                part.train_ops = choice  # type: ignore[assignment]
        given, weights = x.clone().requires_grad_(), alphas.clone().requires_grad_()
        outputs = [o for o in module(given, weights, bridge=bridge) if o is not None]
        loss = sum((o * cases.normal(*o.shape, dtype=F64, seed=7 + i)).sum() for i, o in enumerate(outputs))
        loss.backward()
        named = dict(module.named_parameters())
        gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
        results.append([*outputs, given.grad, weights.grad, *gradients.values(), *module.buffers()])
    close(results[1], results[0])


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4), c=st.integers(1, 9).map(lambda i: 8 * i), h=st.integers(2, 30), w=st.integers(3, 30),
    stages=st.integers(1, 3), paths=st.sampled_from(["ud", "u", "d", ""]), skip=st.booleans(),
)  # fmt: skip
def test_any_shape(n: int, c: int, h: int, w: int, stages: int, paths: str, skip: bool) -> None:
    args = cases.node_train(n, c, h, w, stages, paths, F64)
    close(trained(args, backend="cpu", skip=skip), trained(args, backend="reference", skip=skip))


def test_samples_left_out() -> None:
    """With `skip` the others are what they are without the closed ones, bit for bit, and the work goes down."""
    args = cases.node_train(4, 16, 12, 10)
    x, alphas, *weights = args
    open = torch.tensor([True, False, True, True])
    whole = ops.node_train(*copies(args), skip=True, backend="cpu")
    counted = macs()
    there = ops.node_train(x[open], alphas[open], *copies(weights), skip=True, backend="cpu")
    assert counted == macs() > 0
    for a, b in zip(whole, there):
        assert a is not None and b is not None and torch.equal(a[open], b)
    assert torch.equal(whole.keep[1], x[1]) and whole.up is not None and (whole.up[1] == 0).all()
    ops.node_train(*copies(args), skip=False, backend="cpu")
    assert macs() > counted
    means = weights[-2]
    before = copies(means)
    closed = ops.node_train(x, torch.zeros_like(alphas), *weights, skip=True, backend="cpu")
    assert torch.equal(closed.keep, x) and macs() == 0
    assert all(torch.equal(a, b) for a, b in zip(means, before))


def test_work_of_the_backward() -> None:
    """The kernels count what they do: with a sample left out, that sample's share less."""
    args = cases.node_train(4, 16, 12, 10)

    def backward(skip: bool) -> int:
        given = [copies(a, i < DIFFERENTIATED) for i, a in enumerate(args)]
        out = ops.node_train(*given, skip=skip, backend="cpu")
        sum(o.sum() for o in out if o is not None).backward()
        return macs()

    pixels, taps, products, up, down = 120, 2 * 9 * 16, 2 * 16 * 16, 8 * 16, 32 * 16 // 4
    assert backward(False) == 4 * pixels * (3 * taps + 2 * (products + up + down))
    assert backward(True) == pixels * (3 * (3 * taps + 2 * products) + 2 * (3 * up + 2 * down))


def test_no_samples() -> None:
    args = cases.node_train(0, 16, 6, 4)
    keep, up, down, *rest = trained(args, backend="cpu")
    assert keep.shape == (0, 16, 6, 4) and up.shape == (0, 8, 6, 4) and down.shape == (0, 32, 3, 2)
    assert all((grad == 0).all() for grad in rest[len(leaves(args[DIFFERENTIATED:])) :])


@pytest.mark.parametrize("c, h, w", [(16, 40, 33), (128, 17, 12), (256, 6, 6)])
def test_bits(c: int, h: int, w: int) -> None:
    """The same bits of outputs, statistics and gradients with any number of threads."""
    args = cases.node_train(3, c, h, w)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(trained(args, backend="cpu"))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", OPTIONS[:6], ids=lambda o: "-".join(o) or "all")
def test_gradcheck(backend: str, options: dict[str, Any]) -> None:
    x, alphas, dw, pw, up, down, *norms = cases.node_train(4, 8, 4, 3, dtype=F64)
    alphas = alphas.clone()
    alphas[1] = 0.9 if options.get("bridge") else alphas[1]  # a step through the threshold is no derivative
    flat = [t.clone().requires_grad_() for t in (x, alphas, *dw, *pw, up, down, *norms[0], *norms[1])]

    def node(x: Tensor, alphas: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        taps, products, up, down, rest = list(rest[:2]), list(rest[2:4]), rest[4], rest[5], rest[6:]
        if not options.get("bridge"):
            alphas = torch.where(torch.tensor([True, False, True, True])[:, None], alphas, 0.0)
            alphas = alphas * torch.tensor([[1.0, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=F64)
        out = ops.node_train(
            x, alphas, taps, products, up, down, list(rest[:4]), list(rest[4:]), *copies(norms[2:]),
            backend=backend, **options,
        )  # fmt: skip
        return tuple(o for o in out if o is not None)

    assert torch.autograd.gradcheck(node, flat, fast_mode=True)


@pytest.mark.parametrize("paths", ["ud", "d", ""])
def test_opcheck(paths: str) -> None:
    args = cases.node_train(3, 8, 6, 5, paths=paths)
    args[1].fill_(0.5)
    given = [copies(a, i < DIFFERENTIATED) for i, a in enumerate(args)]
    for narrow in (False, True):
        torch.library.opcheck(torch.ops.dynroute.node_train.default, (*given, None, 0.0, True, False, "", 1e-5, narrow))


def test_compile() -> None:
    args = cases.node_train(3, 8, 6, 5)

    def node(*args: Any) -> ops.NodeOutput:
        return ops.node_train(*args, skip=True, backend="cpu")

    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    results = []
    for run in (node, compiled):
        given = [copies(a, i < DIFFERENTIATED) for i, a in enumerate(args)]
        out = run(*given)
        sum(o.square().sum() for o in out).backward()
        results.append([*(o.detach() for o in out), *(leaf.grad for leaf in leaves(given[:DIFFERENTIATED]))])
    close(*results)


def test_flops_and_gradients_nobody_wants() -> None:
    args = cases.node_train(3, 8, 6, 4)
    pixels, taps, products, paths = 3 * 24, 2 * 8 * 9, 2 * 8 * 8, 4 * 8 + 16 * 8 // 4

    def flops(wants_x: bool, wants_weights: bool) -> int:
        given = [copies(a, wants_x if i < 2 else wants_weights and i < DIFFERENTIATED) for i, a in enumerate(args)]
        with FlopCounterMode(display=False) as counter:
            sum(o.sum() for o in ops.node_train(*given, backend="cpu")).backward()  # type: ignore[union-attr]
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves(given))
        return counter.get_total_flops()

    forward = 2 * pixels * (taps + products + paths)
    assert flops(True, True) == forward + 2 * pixels * (2 * (products + paths) + 3 * taps)
    assert flops(True, False) == forward + 2 * pixels * (products + paths + taps)


def test_errors() -> None:
    x, alphas, dw, pw, up, down, *norms = cases.node_train(2, 16, 6, 4)
    wrong = [
        ((x[0], alphas, dw, pw, up, down, *norms), {}, r"node_train: x: wanted shape \[\*, \*, \*, \*\], got"),
        ((x, alphas[:1], dw, pw, up, down, *norms), {}, r"node_train: alphas: wanted shape \[2, 3\], got \[1, 3\]"),
        ((x, alphas, dw, pw, up[:, :8], down, *norms), {}, r"node_train: up: wanted shape \[\*, 16, 1, 1\], got"),
        ((x, alphas, dw, pw, None, down, *norms), {}, r"running_var: wanted as many as convolutions \(3\)"),
        ((x, alphas, dw, pw, up, down, *norms), {"factor": x[:, 0, 0, 0].double()}, r"factor: wanted float32, got"),
        ((x, alphas, dw, pw, up, down, *norms), {"bridge": -1.0}, r"node_train: bridge: wanted 0 or more, got -1"),
    ]
    for args, options, message in wrong:
        with pytest.raises(RuntimeError, match=message):
            ops.node_train(*args, **options, backend="cpu")


@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    """This file again, in a process held to another instruction set."""
    run = python("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", __file__, DYNROUTE_CPU_ISA=isa)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
