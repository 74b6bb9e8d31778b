"""The training operators on a GPU, against float64 on the CPU: what the emulator has shown, and what it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import dynroute
from dynroute import ops
from tests.support import cases
from tests.support.backends import NAMESPACE, on_a_gpu
from tests.support.cuda import trained
from tests.support.networks import random_images, random_network
from tests.support.trees import leaves, to

pytestmark = on_a_gpu
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
types = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
# results: of the largest value
LIMIT = {torch.float32: 1e-5, torch.float16: 4 * 2.0**-10, torch.bfloat16: 4 * 2.0**-7}
# Gradients: of the norm. Among a million values some lie so near 0 that a ReLU lets their gradient pass in one rounding
# and not in another: each such sign is some 1e-3. The emulator's tests, on maps without, are strict.
OF_GRADIENTS = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 0.1}
OPEN = torch.tensor([True, False, True])
CALLS: dict[str, tuple[str, Any, tuple]] = {
    "sepconv": ("sepconv_train", cases.sepconv_train(3, 64, 67, 129), (OPEN, 1, True, True, False, "")),
    "sepconv stride 2": (
        "sepconv_train", cases.sepconv_train(3, 64, 66, 129, 2, 256), (None, 2, False, True, False, "")
    ),
    "sepconv wide": ("sepconv_train", cases.sepconv_train(3, 512, 16, 32), (None, 1, True, True, False, "")),
    "transform": ("transform_train", cases.transform_train(3, 256, 33, 65, 512), (OPEN, 2, True, False, "")),
    "gate": ("gate_train", cases.gate_train(3, 64, 128, 256), ("tanh", [1, 0, 2], False, False, "")),
    "gate small": ("gate_train", cases.gate_train(3, 256, 33, 66), ("softmax", [1, 0, 2], True, False, "")),
    "node": ("node_train", cases.node_train(3, 64, 128, 129), (None, 0.6, True, False, "")),
    "node all": (
        "node_train", cases.node_train(3, 128, 64, 64), (torch.tensor([0.0, 2.0, 1.25]), 0.0, False, False, "")
    ),
    "node coarse": ("node_train", cases.node_train(3, 512, 16, 32, 2, "u"), (None, 0.0, True, False, "")),
}  # fmt: skip
each = pytest.mark.parametrize("name", list(CALLS))


def kernels_of(backend: str, op: str) -> Callable[..., Any]:
    if backend == "triton":
        from dynroute.ops.triton import operators  # noqa: F401  (importing makes them)
    return getattr(getattr(torch.ops, NAMESPACE[backend]), op)  # type: ignore[no-any-return]


def on_gpu(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    """Runs an operator by name on the device."""
    return lambda op, *args: tuple(out.cpu() for out in kernels_of(backend, op)(*to(args, "cuda")))


def given(name: str, dtype: torch.dtype) -> tuple[str, tuple, tuple]:
    op, args, options = CALLS[name]
    return op, (trained.channels_last(args[0].to(dtype)), *args[1:]), options


@types
@each
def test_parity(name: str, dtype: torch.dtype, backend: str) -> None:
    op, args, options = given(name, dtype)
    results, gradients, outs = trained.both_directions(op, args, options, on_gpu(backend))
    exact, exact_gradients = trained.by_reference(op, args, options, outs)
    for got, wanted in zip(results, exact, strict=True):
        assert trained.error(got, wanted) <= LIMIT[dtype]
    for got, wanted in zip(gradients, exact_gradients, strict=True):
        assert trained.far([got], [wanted]) <= OF_GRADIENTS[dtype]
    again = trained.both_directions(op, args, options, on_gpu(backend))
    for a, b in zip((*results, *gradients), (*again[0], *again[1]), strict=True):
        assert torch.equal(a, b), "not the same bits again"


@each
def test_autograd_autocast_and_graphs(name: str, backend: str) -> None:
    """Gradients through the public function; autocast lowers maps and leaves weights; both directions are captured."""
    op, args, options = given(name, torch.float32)
    x, *rest = to(args, "cuda")
    options = to(options, "cuda")
    x.requires_grad_()

    def run() -> tuple[list[Tensor], Tensor]:
        if op == "node_train":
            outs = leaves(ops.node_train(x, *rest, *options[:4], momentum=0.0, backend=backend))
        elif op == "gate_train":
            outs = [ops.gate_train(x, *rest, *options[:4], momentum=0.0, backend=backend)]
        else:
            outs = [getattr(ops, op)(x, *rest, *options[:-1], momentum=0.0, backend=backend)]
        (grad,) = torch.autograd.grad(sum(out.float().sum() for out in outs), x)
        # without their history, which would hold the stream that it was made on: a graph could not wait for that
        return [out.detach() for out in outs], grad

    plain, plain_grad = run()
    with torch.autocast("cuda", torch.bfloat16):
        lowered, lowered_grad = run()
    of_maps = torch.float32 if op == "gate_train" else torch.bfloat16
    assert all(out.dtype == of_maps for out in lowered) and lowered_grad.dtype == torch.float32
    assert all((a.float() - b).norm() <= 0.05 * b.norm() for a, b in zip(lowered, plain))
    with torch.cuda.stream(torch.cuda.Stream()):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded, recorded_grad = run()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(recorded, plain)) and torch.equal(recorded_grad, plain_grad)


@each
def test_no_wait(name: str, backend: str) -> None:
    """The host is not held up, in either direction."""
    op, args, options = given(name, torch.float16)
    calls: list[tuple[Any, tuple, tuple]] = []

    def call(op: str, *args: Any) -> tuple:
        run, moved = kernels_of(backend, op), to(args, "cuda")
        calls.append((run, moved, tuple(run(*moved))))
        return calls[-1][2]

    trained.both_directions(op, to(args, "cuda"), to(options, "cuda"), call)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [run(*moved) for run, moved, _ in calls]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seen = (trained.visible(op), None)  # of the forward; all gradients
    for got, (_, _, wanted), of in zip(again, calls, seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(got[:of], wanted[:of], strict=True))


@each
def test_a_group_of_one_process(name: str, tmp_path: Path, backend: str) -> None:
    """Statistics gathered by nccl, from the kernels' memory and into it: the same as without a group."""
    op, args, options = given(name, torch.float32)
    alone = trained.both_directions(op, args, options, on_gpu(backend))
    dist.init_process_group("nccl", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        group = dist.group.WORLD.group_name  # type: ignore[union-attr]
        gathered = trained.both_directions(op, args, (*options[:-1], group), on_gpu(backend))
    finally:
        dist.destroy_process_group()
    for a, b in zip((*gathered[0], *gathered[1]), (*alone[0], *alone[1]), strict=True):
        assert trained.error(a, b.double()) <= 1e-6


def step(net: torch.nn.Module, device: str, choice: str, autocast: bool = False) -> dict[str, Tensor]:
    net = copy.deepcopy(net).to(device).use_ops(choice)  # type: ignore[operator]
    dtype = next(net.parameters()).dtype
    images = random_images(2, 128, 128).to(device, dtype).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (2, 128, 128), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.autocast(device, torch.float16, enabled=autocast):
        losses = dynroute.objective(net, images, labels, progress=0.5, budget=dynroute.Budget(0.5, 0.4))
    sum(losses.values()).backward()  # type: ignore[union-attr]
    found = {**losses, **{n: p.grad for n, p in net.named_parameters() if p.grad is not None}}
    return {name: value.detach().double().cpu() for name, value in found.items()}


@pytest.mark.parametrize("autocast", [False, True])
def test_a_whole_step(autocast: bool, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """As near to float64 as plain PyTorch on the same GPU, within a factor of two."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    net = random_network(channels=32, layers=5).train()
    exact = step(copy.deepcopy(net).double(), "cpu", "reference")
    ours, plain = step(net, "cuda", backend, autocast), step(net, "cuda", "reference", autocast)
    names = list(exact)
    far = [trained.far([found[n] for n in names], [exact[n] for n in names]) for found in (ours, plain)]
    assert far[0] <= 2 * far[1] + 1e-5, far
