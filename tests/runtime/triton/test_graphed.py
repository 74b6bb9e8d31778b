"""What a GPU's executor does around its kernels: graphs, streams, memory. On a `torch.cuda` that is not there kernels
are interpreted, or only noted; at the end on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

import dynroute
from dynroute.ops.triton import launch
from dynroute.runtime.executor import Runtime
from tests.support.cuda.fake_cuda import FakeTorchCuda
from tests.support.networks import random_gates, random_images, random_network, same_bits

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
without_gpu = pytest.mark.skipif(ON_GPU, reason="there is a GPU: kernels are not interpreted")
on_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")


class Noted:
    """`torch.cuda` as the executor sees it, and how kernels are launched meanwhile.

    Attributes:
        computes: whether they are interpreted, or only noted.
        launched: names of kernels, in order; those of a graph whenever it is replayed.
    """

    def __init__(self) -> None:
        self.cuda = FakeTorchCuda()
        self.computes = False
        self.launched: list[str] = []

    def elsewhere(self, kernel: Any) -> Any:
        def at(grid: tuple[int, ...]) -> Callable[..., None]:
            def go(*arguments: Any, **constants: Any) -> None:
                def call() -> None:
                    self.launched.append(kernel.__name__)
                    if self.computes:
                        kernel[grid](*arguments, **constants)

                if self.cuda.recording is None:
                    call()
                else:
                    self.cuda.recording.append(call)

            return go

        return type("At", (), {"__getitem__": staticmethod(at)})()

    def events(self, name: str) -> list[Any]:
        """Those of one kind, in order."""
        return [event for event in self.cuda.events if event == name or event[0] == name]


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Noted:
    from dynroute.runtime.triton import graphed

    made = Noted()

    class Torch:
        cuda, uint8 = made.cuda, torch.uint8
        Tensor, device, dtype = torch.Tensor, torch.device, torch.dtype

    monkeypatch.setattr(graphed, "torch", Torch)
    monkeypatch.setattr(launch, "elsewhere", made.elsewhere)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda t, stream: made.cuda.events.append(("recorded", t, stream))
    )
    return made


def runtime_of(net) -> Runtime:
    from dynroute.runtime.triton.graphed import GraphedExecutor

    return Runtime(net, "triton", "a test", torch.float32, GraphedExecutor(net, torch.float32, torch.device("cpu")))


@without_gpu
def test_graph_and_direct_launches_compute_the_same(noted: Noted) -> None:
    """The first call launches its plan, the second records the middle; then it is three launches and the graph."""
    noted.computes = True
    run = runtime_of(random_network(gate_shift=-0.2, layers=4))
    batches = [random_images(1, 32, 32, seed=seed) for seed in (0, 1, 0)]
    outs = [run(x) for x in batches]
    assert len(noted.events("capture")) == 1 and noted.cuda.events.count("replay") == 2
    kept = outs[1].logits.clone()
    same_bits(outs[0], outs[2])
    assert not torch.equal(outs[0].logits, kept) and torch.equal(outs[1].logits, kept)
    noted.launched.clear()
    assert torch.equal(run.labels(batches[1]), outs[1].logits.argmax(1).to(torch.uint8))
    assert noted.launched[:2] == ["begin_kernel", "conv_kernel"] and noted.launched[-1] == "labels_kernel"
    assert len(noted.events("capture")) == 1  # logits and labels share a graph


@without_gpu
def test_a_shape_is_recorded_when_it_comes_again_and_few_are_kept(
    noted: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynroute.runtime.triton.executor.KEPT_SHAPES", 2)
    run = runtime_of(random_network(layers=4))
    large, middle, small = (96, 96), (64, 64), (32, 32)
    recorded = []
    for size in (large, middle, large, large, small, middle, large):
        noted.cuda.events.clear()
        run(random_images(1, *size))
        recorded.append(len(noted.events("capture")))
    assert recorded == [0, 0, 1, 0, 0, 0, 0]  # small let middle's go, which let large's go
    gates = run.all_open_gates()
    noted.cuda.events.clear(), noted.launched.clear()
    run(random_images(1, *large), gates), run(random_images(1, *large), gates)
    assert len(noted.events("capture")) == 1 and "pool_kernel" not in noted.launched  # given gates are another graph
    run(random_images(2, *large))  # a larger workspace: what held the old one's address goes
    assert len(run.executor._prepared) == 1


@without_gpu
def test_streams(noted: Noted) -> None:
    """A call on another stream waits for the last one; memory waits for every stream that used it."""
    run = runtime_of(random_network(layers=4))
    x = random_images(1, 32, 32)
    for noted.cuda.current in (1, 1, 2, 1):
        run(x)
    assert noted.events("wait") == [("wait", 2), ("wait", 1)]
    held = {(id(tensor), int(stream)) for _, tensor, stream in noted.events("recorded")}
    tensors = [run.executor._memory, *run.executor._weights.tensors()]
    assert held >= {(id(tensor), stream) for tensor in tensors for stream in (1, 2)}
    ((_, stream, _),) = noted.events("capture")
    assert stream not in (1, 2)
    noted.cuda.events.clear()
    run(random_images(1, 64, 64))  # a new workspace
    assert any(tensor is run.executor._memory for _, tensor, _ in noted.events("recorded"))


@without_gpu
def test_recordings_take_turns(noted: Noted) -> None:
    runs = [runtime_of(random_network(layers=4)) for _ in range(3)]

    def work(run: Runtime) -> None:
        for _ in range(2):
            run(random_images(1, 32, 32))

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(noted.events("capture")) == 3 and noted.cuda.most_captures_at_once == 1


@without_gpu
def test_inside_a_capture_of_the_callers(noted: Noted) -> None:
    """Launches go into the caller's graph, with a workspace of its own; kernels have to be there."""
    run = runtime_of(random_network(layers=4))
    x = random_images(1, 32, 32)
    noted.cuda.capturing = True
    with pytest.raises(RuntimeError, match=r"images: wanted a call like this one .*\[1, 3, 32, 32\], gates not given"):
        run(x)
    noted.cuda.capturing = False
    for _ in range(2):
        run(x)
    noted.cuda.events.clear(), noted.launched.clear()
    noted.cuda.capturing = True
    run(x)
    (prepared,) = run.executor._prepared.values()
    assert not noted.cuda.events and len(noted.launched) == len(prepared.plan.middle) + 3
    with pytest.raises(RuntimeError, match="before it is captured"):
        run.labels(x)


@on_gpu
def test_on_a_gpu() -> None:
    """Directly, recorded, as a graph, on a stream, in a graph of the caller's: the same bits, no waiting."""
    net = random_network(gate_shift=-0.3)
    run = dynroute.optimize(net, "triton", torch.float16)
    x, other = (random_images(2, 96, 128, seed=seed).cuda() for seed in range(2))
    gates = random_gates(net, 2, 0.5).cuda()
    first, forced = run(x), run(x, gates)  # directly
    same_bits(run(x), first), same_bits(run(x, gates), forced)  # recorded
    run(other)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        again, forced_again, labels = run(x), run(x, gates), run.labels(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    same_bits(again, first), same_bits(forced_again, forced)
    assert torch.equal(labels, first.logits.argmax(1).to(torch.uint8))
    with torch.cuda.stream(torch.cuda.Stream()):
        same_bits(run(x), first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run(x).logits
    wanted = run(other).logits
    x.copy_(other)
    graph.replay()
    assert torch.equal(logits, wanted)
