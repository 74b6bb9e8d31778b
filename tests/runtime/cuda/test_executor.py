"""The CUDA executor and its launches, on a CUDA that is not there: kernels run on the emulator, or are only noted."""

from __future__ import annotations

import ctypes
import shutil
import threading

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
            runtime.run(launches, dtype, first, last, io, made.index)

        if made.recording is None:
            made.events.append(("run", first, min(last, len(read_launches(launches)))))
            call()
        else:
            made.recording.append(call)

    class Torch:
        cuda, ops = made, torch.ops
        Tensor, device, dtype, empty, uint8 = torch.Tensor, torch.device, torch.dtype, torch.empty, torch.uint8

    monkeypatch.setattr(cuda, "torch", Torch)
    monkeypatch.setattr(torch.ops.dynroute, "cuda_run", run)
    monkeypatch.setattr(torch.ops.dynroute, "cuda_hold", lambda tensor: made.events.append(("hold", tensor)))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, stream: made.events.append(("recorded", t, stream)))
    monkeypatch.setattr(DeviceLimits, "of", staticmethod(lambda device: DeviceLimits()))
    runtime.on_launch = lambda *launch: None
    return made


def captures(fake: FakeTorchCuda) -> list[tuple]:
    return [event for event in fake.events if isinstance(event, tuple) and event[0] == "capture"]


def runtime_of(net, storage=torch.float32) -> Runtime:
    return Runtime(net, "cuda", "a test", storage, CudaExecutor(net, storage, torch.device("cpu")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches_are_those_of_the_list(runtime: FakeRuntime, dtype: torch.dtype) -> None:
    """Each kernel of the list by its name and type, with its shape, `init_call` with this call's addresses."""
    executor = EmulatedExecutor(random_network(channels=64), dtype)
    launch_list = executor.launch_list(2, 64, 96, 60, 90)
    addresses = [1 << 20] * len(launch_list.buffers()[0])
    launches = launch_list.launches(addresses, 1 << 30, executor.table)
    wanted = read_launches(launches)
    found = []

    def note(name: str, shape: tuple[int, int, int], params: int) -> None:
        at = wanted[len(found)]
        found.append((name, shape, ctypes.string_at(params, len(at.params))))

    runtime.on_launch = note
    io = list(range(100, 100 + len(Io._fields)))
    runtime.run(launches, DTYPES.index(dtype), 0, 1 << 30, io)
    assert len(found) == len(wanted)
    for (name, shape, params), launch in zip(found, wanted):
        assert name == f"{launch.kernel}_{emulator.SUFFIX[dtype]}" and shape == launch[1:4]
        skip = 8 * len(io) if launch.kernel == "init_call" else 0
        assert params[skip:] == launch.params[skip:]
    assert found[0][2][: 8 * len(io)] == b"".join(value.to_bytes(8, "little") for value in io)
    assert any(shape[2] > 48 << 10 for _, shape, _ in found), "something should have needed more than 48 KB"


def test_kernels_are_readied_once_for_each_device(tmp_path) -> None:
    """By many threads that launch at once, on two devices: the stand-in refuses a launch that was not opted in."""
    runtime = FakeRuntime(tmp_path)
    executor = EmulatedExecutor(random_network(channels=64), torch.float16, limits=DeviceLimits())
    launch_list = executor.launch_list(1, 64, 96, 64, 96)
    launches = launch_list.launches([1 << 20] * len(launch_list.buffers()[0]), 1 << 30, executor.table)
    assert any(launch.shared > 48 << 10 for launch in read_launches(launches))
    errors: list[BaseException] = []

    def work(device: int) -> None:
        try:
            runtime.run(launches, 1, 0, 1 << 30, [0] * len(Io._fields), device)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number % 2,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and runtime.library.times_opted_in() == 1
    with pytest.raises(RuntimeError, match="device 128 is beyond what this library counts"):
        runtime.run(launches, 1, 0, 1 << 30, [0] * len(Io._fields), 128)


@pytest.mark.parametrize(
    "said, overlap, device",
    [
        (None, True, {"capability": 90}),
        ("1", True, {"capability": 120, "ptx": 90}),
        ("0", False, {"capability": 90}),
        (None, False, {"capability": 80}),
        (None, False, {"capability": 90, "ptx": 80}),  # kernels that do not wait
        (None, False, {"capability": 90, "driver": 12020}),  # graphs that cannot say it
    ],
)
def test_launches_that_overlap(
    said: str | None, overlap: bool, device: dict[str, int], tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the first of a list, of what a graph records of it, and of an operator's; asked for once."""
    monkeypatch.delenv("DYNROUTE_CUDA_PDL", raising=False)
    if said is not None:
        monkeypatch.setenv("DYNROUTE_CUDA_PDL", said)
    runtime = FakeRuntime(tmp_path, **device)
    executor = EmulatedExecutor(random_network(), torch.float16)
    launch_list = executor.launch_list(1, 32, 32, 32, 32)
    launches = launch_list.launches([1 << 20] * len(launch_list.buffers()[0]), 1 << 30, executor.table)
    count, io = len(read_launches(launches)), [0] * len(Io._fields)
    for first, last in ((0, count), (0, 1), (1, count)):
        runtime.run(launches, 1, first, last, io)
        assert runtime.overlaps == [False] + [overlap] * (last - first - 1)
        monkeypatch.setenv("DYNROUTE_CUDA_PDL", "0" if overlap else "1")  # too late
    runtime.run_operator()
    assert runtime.overlaps == [False, overlap]


def test_what_a_graph_holds(runtime: FakeRuntime) -> None:
    """Is let go once, by the graph; outside of a capture there is nothing that would."""
    assert runtime.library.hold(1) == 1
    assert runtime.library.hold(0) == -1


def test_broken_lists_are_refused(runtime: FakeRuntime) -> None:
    executor = EmulatedExecutor(random_network(), torch.float32)
    launch_list = executor.launch_list(1, 32, 32, 32, 32)
    launches = launch_list.launches([0] * len(launch_list.buffers()[0]), 0, executor.table)
    io = [0] * len(Io._fields)
    unknown = launches.clone()
    unknown[0] = ord("I")
    empty = launches.clone()
    empty[32:36] = 0  # blocks, behind the name
    for broken, message in (
        (launches[:56], "the list ends within a record"),
        (launches[:20], "the list ends within a record"),
        (unknown, "there is no kernel Init_call"),
        (empty, "init_call, 0 blocks of 128 threads, 0 bytes of shared memory: invalid argument"),
    ):
        with pytest.raises(RuntimeError, match=message):
            runtime.run(broken, 0, 0, 1 << 30, io)


@pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")
def test_graph_and_direct_launches_compute_the_same(fake: FakeTorchCuda, runtime: FakeRuntime) -> None:
    """The first call launches everything, the second records it; then it is `init_call` and the graph. Inputs, outputs
    are the call's."""
    net = random_network(gate_shift=-0.2, layers=4)
    run = runtime_of(net)
    executor = run.executor
    calls: list[Io] = []
    launch = executor._launch
    executor._launch = lambda launch_list, io: (calls.append(io), launch(launch_list, io))

    def emulate(name: str, shape: tuple[int, int, int], params: int) -> None:
        kernel = name.rpartition("_")[0]
        tensors = [executor._workspace, executor.weights]
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
    assert len(captures(fake)) == 1 and fake.events.count("replay") == 3
    assert run.workspace_bytes == executor.launch_list(2, 32, 64, 32, 64).buffers()[1]


def test_a_shape_is_recorded_when_it_comes_again_and_few_are_kept(
    fake: FakeTorchCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "KEPT_SHAPES", 2)
    run = runtime_of(random_network())
    large, middle, small = (96, 96), (64, 64), (32, 32)
    recorded = []
    for size in (large, middle, large, large, small, middle, large):
        fake.events.clear()
        run(random_images(1, *size))
        recorded.append(len(captures(fake)))
    assert recorded == [0, 0, 1, 0, 0, 0, 0]  # small let middle's go, which let large's go
    run(random_images(2, 96, 96))  # a larger workspace: what held the old one's address goes
    assert len(run.executor._prepared) == 1


def test_varying_sizes_are_never_recorded(fake: FakeTorchCuda) -> None:
    run = runtime_of(random_network())
    for i in range(12, 0, -1):
        run(random_images(1, 32, 32 * i))
    assert not captures(fake) and "replay" not in fake.events
    assert len(run.executor._prepared) == cuda.KEPT_SHAPES


def test_recording_is_on_a_stream_of_its_own_and_on_the_networks_device(fake: FakeTorchCuda) -> None:
    """torch's own choice of a stream is one for the whole process, of whichever device recorded first."""
    net = random_network()
    used = set()
    for index in (0, 1, 0):
        executor = CudaExecutor(net, torch.float32, torch.device("cpu"))
        executor.device = torch.device("cuda", index)
        executor._empty = lambda shape, dtype: torch.empty(shape, dtype=dtype)  # type: ignore[method-assign]
        run = Runtime(net, "cuda", "a test", torch.float32, executor)
        fake.events.clear()
        for _ in range(3):
            io = executor._run(random_images(1, 32, 32), None, torch.empty(1, 5, 32, 32), None)
        ((_, stream, on),) = captures(fake)
        assert on == index and stream not in used | {fake.current}
        used.add(stream)
        del run, io


def test_recordings_take_turns(fake: FakeTorchCuda) -> None:
    runs = [runtime_of(random_network()) for _ in range(4)]

    def work(run: Runtime) -> None:
        for _ in range(2):
            run(random_images(1, 32, 32))

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(captures(fake)) == 4 and fake.most_captures_at_once == 1


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
    run(random_images(1, 32, 32))  # records
    asked.clear(), fake.events.clear()
    run(random_images(1, 32, 32))
    assert not asked and [event for event in fake.events if event[0] == "run"] == [("run", 0, 1)]


def test_a_cropped_output_is_a_shape_of_its_own(fake: FakeTorchCuda) -> None:
    run = runtime_of(random_network())
    for size in ((64, 64), (60, 64), (64, 64), (60, 64)):
        assert run(random_images(1, *size)).logits.shape[-2:] == size
    assert len(captures(fake)) == 2


def test_calls_on_other_streams_wait(fake: FakeTorchCuda) -> None:
    run = runtime_of(random_network())
    x = random_images(1, 32, 32)
    for fake.current in (1, 1, 2, 1):
        run(x)
    assert [event for event in fake.events if isinstance(event, tuple) and event[0] == "wait"] == [
        ("wait", 2),
        ("wait", 1),
    ]


def test_memory_waits_for_every_stream_that_used_it(fake: FakeTorchCuda) -> None:
    """A runtime, or a workspace that was too small, may be let go while streams are still at it."""
    run = runtime_of(random_network())

    def recorded() -> list[tuple[int, int]]:
        found = [event for event in fake.events if isinstance(event, tuple) and event[0] == "recorded"]
        assert {id(t) for _, t, _ in found} <= {id(run.executor._workspace), id(run.executor.weights)}
        fake.events.clear()
        return [(int(t is run.executor.weights), int(stream)) for _, t, stream in found]

    for fake.current in (1, 2, 1):
        run(random_images(1, 32, 32))
    assert recorded() == [(0, 1), (1, 1), (0, 2), (1, 2)]
    run(random_images(1, 64, 64))  # a new workspace
    assert (0, 1) in recorded()


def test_inside_a_capture_of_the_callers(fake: FakeTorchCuda) -> None:
    """Launches go into the caller's graph, with a workspace of its own, as it may run beside other calls; and it holds
    the weights, as it may outlive the runtime. The shape needs not be known before."""
    net = random_network()
    run = runtime_of(net)
    x = random_images(1, 32, 32)
    fake.capturing = True
    run(x)
    assert [event[0] for event in fake.events] == ["hold", "run"]
    assert fake.events[0][1] is run.executor.weights
    assert run.workspace_bytes == 0 and not run.executor._prepared
    fake.capturing = False
    run(x)
    assert run.workspace_bytes > 0


def test_images_elsewhere_are_refused(fake: FakeTorchCuda) -> None:
    with pytest.raises(ValueError, match=r"images: wanted float32 on the CPU, got torch\.float32 on meta"):
        runtime_of(random_network())(torch.zeros(1, 3, 32, 32, device="meta"))
