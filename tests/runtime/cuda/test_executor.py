"""The CUDA executor and its launches, on a CUDA that is not there: kernels run on the emulator, or are only noted."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

import dynroute
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda import executor as cuda
from dynroute.runtime.cuda.emulated import EmulatedExecutor
from dynroute.runtime.cuda.executor import CudaExecutor
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits, LaunchList, read_launches
from dynroute.runtime.cuda.listed import Io
from dynroute.runtime.executor import Runtime
from tests.support.cuda.fake_cuda import FakeRuntime, FakeTorchCuda
from tests.support.networks import random_images, random_network

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> FakeRuntime:
    return FakeRuntime(tmp_path_factory.mktemp("launch"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, runtime: FakeRuntime) -> FakeTorchCuda:
    """`torch.cuda` as dynroute.runtime.cuda.executor sees it, and an operator that launches on the fake runtime."""
    made = FakeTorchCuda()

    def run(workspace, launches, dtype, first, last, io):
        def call() -> None:
            runtime.run(launches, dtype, first, last, io)

        if made.recording is None:
            made.events.append(("run", first, min(last, len(read_launches(launches)))))
            call()
        else:
            made.recording.append(call)

    class Torch:
        cuda = made
        Tensor, device, dtype, empty, uint8 = torch.Tensor, torch.device, torch.dtype, torch.empty, torch.uint8

    monkeypatch.setattr(cuda, "torch", Torch)
    monkeypatch.setattr(torch.ops.dynroute, "cuda_run", run)
    monkeypatch.setattr(DeviceLimits, "of", staticmethod(lambda device: DeviceLimits()))
    runtime.on_launch = lambda *launch: None
    return made


def runtime_of(net, storage=torch.float32) -> Runtime:
    return Runtime(net, "cuda", "a test", storage, CudaExecutor(net, storage, torch.device("cpu")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches_are_those_of_the_list(runtime: FakeRuntime, dtype: torch.dtype) -> None:
    """Each kernel of the list by its name and type, with its shape, opted in to what it shares, `init_call` with this
    call's addresses."""
    executor = EmulatedExecutor(random_network(channels=64), dtype)
    launch_list = executor.launch_list(2, 64, 96, 60, 90)
    addresses = [1 << 20] * len(launch_list.buffers()[0])
    launches, _ = launch_list.launches(addresses, 1 << 30, executor.table)
    wanted = read_launches(launches)
    found = []

    def note(name: str, shape: tuple[int, int, int], opted_in: int, params: int) -> None:
        at = wanted[len(found)]
        found.append((name, shape, opted_in, ctypes.string_at(params, len(at.params))))

    runtime.on_launch = note
    io = list(range(100, 100 + len(Io._fields)))
    runtime.run(launches, DTYPES.index(dtype), 0, 1 << 30, io)
    assert len(found) == len(wanted)
    for (name, shape, opted_in, params), launch in zip(found, wanted):
        assert name == f"{launch.kernel}_{emulator.SUFFIX[dtype]}" and shape == launch[1:4]
        assert opted_in == (shape[2] if shape[2] > 48 << 10 else 0)
        skip = 8 * len(io) if launch.kernel == "init_call" else 0
        assert params[skip:] == launch.params[skip:]
    assert found[0][3][: 8 * len(io)] == b"".join(value.to_bytes(8, "little") for value in io)
    assert any(opted_in for _, _, opted_in, _ in found), "something should have needed more than 48 KB"


def test_broken_lists_are_refused(runtime: FakeRuntime) -> None:
    executor = EmulatedExecutor(random_network(), torch.float32)
    launch_list = executor.launch_list(1, 32, 32, 32, 32)
    launches, _ = launch_list.launches([0] * len(launch_list.buffers()[0]), 0, executor.table)
    io = [0] * len(Io._fields)
    unknown = launches.clone()
    unknown[0] = ord("I")
    empty = launches.clone()
    empty[16:20] = 0  # blocks
    for broken, message in (
        (launches[:40], "the list ends within a record"),
        (launches[:20], "the list ends within a record"),
        (unknown, "there is no kernel Init_call"),
        (empty, "init_call, 0 blocks of 128 threads, 0 bytes of shared memory: invalid argument"),
    ):
        with pytest.raises(RuntimeError, match=message):
            runtime.run(broken, 0, 0, 1 << 30, io)


@pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")
def test_graph_and_direct_launches_compute_the_same(fake: FakeTorchCuda, runtime: FakeRuntime) -> None:
    """The first call launches everything, later ones `init_call` and the graph; inputs and outputs are the call's."""
    net = random_network(gate_shift=-0.2, layers=4)
    run = runtime_of(net)
    executor = run.executor
    calls: list[Io] = []
    launch = executor._launch
    executor._launch = lambda launch_list, io: (calls.append(io), launch(launch_list, io))

    def emulate(name: str, shape: tuple[int, int, int], opted_in: int, params: int) -> None:
        kernel = name.rpartition("_")[0]
        tensors = [executor._workspace, executor.weights, *(kept.rows for kept in executor._prepared.values())]
        tensors += [tensor for tensor in calls[-1] if tensor is not None]
        size = emulator.module(kernel, torch.float32).parameters(name)[0][2]
        arrays = [emulator.array(tensor) for tensor in tensors]
        emulator.launch(kernel, torch.float32, ctypes.string_at(params, size), shape, arrays)

    runtime.on_launch = emulate
    batches = [random_images(2, 32, 64, seed=seed) for seed in range(3)]
    outs = [run(x) for x in batches]
    labels = run.labels(batches[1])
    wanted = dynroute.optimize(net, "cuda-emulated")
    for x, out in zip(batches, outs):
        other = wanted(x)
        assert torch.equal(out.logits, other.logits) and torch.equal(out.executed_nodes, other.executed_nodes)
    assert torch.equal(labels, outs[1].logits.argmax(1).to(torch.uint8))
    assert fake.events.count("capture") == 1 and fake.events.count("replay") == 3
    assert run.workspace_bytes == executor.launch_list(2, 32, 64, 32, 64).buffers()[1]


def test_one_graph_for_each_shape_and_few_are_kept(fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "KEPT_SHAPES", 2)
    run = runtime_of(random_network())
    sizes = [(96, 96), (64, 64), (32, 32), (64, 64), (96, 96)]
    captures = []
    for size in sizes:
        fake.events.clear()
        run(random_images(1, *size))
        captures.append(fake.events.count("capture"))
    assert captures == [1, 1, 1, 0, 1]  # the third call let the first shape's go
    fake.events.clear()
    run(random_images(2, 96, 96))  # a larger workspace: what held the old one's address goes
    assert "synchronize" in fake.events and len(run.executor._prepared) == 1


def test_a_cold_call_asks_once_for_its_sizes_and_a_warm_one_for_nothing(
    fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a warm one crosses into the CUDA library once, for `init_call`; the graph does the rest."""
    asked = []
    for name in ("buffers", "launches"):
        method = getattr(LaunchList, name)
        monkeypatch.setattr(LaunchList, name, lambda *a, name=name, method=method: (asked.append(name), method(*a))[1])
    run = runtime_of(random_network())
    run(random_images(1, 32, 32))
    assert asked == ["buffers", "launches"]
    asked.clear(), fake.events.clear()
    run(random_images(1, 32, 32))
    assert not asked and [event for event in fake.events if event[0] == "run"] == [("run", 0, 1)]


def test_a_cropped_output_is_a_shape_of_its_own(fake: FakeTorchCuda) -> None:
    run = runtime_of(random_network())
    for size in ((64, 64), (60, 64), (64, 64)):
        assert run(random_images(1, *size)).logits.shape[-2:] == size
    assert fake.events.count("capture") == 2


def test_calls_on_other_streams_wait(fake: FakeTorchCuda) -> None:
    run = runtime_of(random_network())
    x = random_images(1, 32, 32)
    for fake.stream in (1, 1, 2, 1):
        run(x)
    assert [event for event in fake.events if isinstance(event, tuple) and event[0] == "wait"] == [
        ("wait", 2),
        ("wait", 1),
    ]


def test_inside_a_capture_of_the_callers(fake: FakeTorchCuda) -> None:
    """Launches go into the caller's graph, which keeps the memory it was recorded with."""
    run = runtime_of(random_network())
    x = random_images(1, 32, 32)
    run(x)
    workspace = run.executor._workspace
    fake.capturing = True
    fake.events.clear()
    run(x)
    assert [event[0] for event in fake.events] == ["run"]
    fake.capturing = False
    run(random_images(1, 64, 64))
    assert run.executor._workspace is not workspace
    assert any(kept is workspace for kept, _ in run.executor._lent)


def test_images_elsewhere_are_refused(fake: FakeTorchCuda) -> None:
    with pytest.raises(ValueError, match=r"images: wanted float32 on the CPU, got torch\.float32 on meta"):
        runtime_of(random_network())(torch.zeros(1, 3, 32, 32, device="meta"))
