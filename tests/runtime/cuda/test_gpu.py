"""The CUDA backend on a GPU.  What the emulator has shown for small shapes, at larger ones; and what it cannot show:
streams, graphs, no wait for the device, memory."""

from __future__ import annotations

import copy
import gc
import threading
from types import SimpleNamespace

import pytest
import torch

import dynroute
from benchmarks.network import settled
from dynroute.native import library
from dynroute.runtime.cuda.executor import CudaExecutor
from dynroute.runtime.cuda.launch_list import DTYPES
from dynroute.runtime.executor import Runtime
from tests.support.goldens import EVAL, check_eval, load
from tests.support.networks import (
    BITS,
    check_batch_never_changes_a_sample,
    largest_error,
    random_gates,
    random_images,
    random_network,
    same_bits,
)

pytestmark = pytest.mark.skipif(library.why_not_cuda() is not None, reason=library.why_not_cuda() or "")
FULL = {"layers": 16, "channels": 64, "stem_width": 64, "num_classes": 19}


def on_cpu(out) -> SimpleNamespace:
    names = (*BITS, "expected_mflops", "real_mflops", "halo_macs")
    return SimpleNamespace(**{name: getattr(out, name).cpu() for name in names})


@pytest.mark.parametrize("path", [path for path, _ in EVAL], ids=[name for _, name in EVAL])
def test_goldens(path) -> None:
    _, golden, net, (images, _) = load(path)
    run = dynroute.optimize(net, "cuda")
    for _ in range(3):  # launched directly, recorded, as a graph
        check_eval(on_cpu(run(images.cuda())), golden)


@pytest.mark.parametrize("fusion", ["auto", "fused", "staged"])
@pytest.mark.parametrize("config", [FULL, {**FULL, "small_gate": True}, {"layers": 6, "cell": "sepconv3"}], ids=str)
def test_agrees_with_the_cpu_engine(config: dict, fusion: str) -> None:
    net = random_network(gate_shift=-0.2, **config)
    x = random_images(2, 256, 510)
    for gates in (None, random_gates(net, 2, 0.6)):
        wanted = dynroute.optimize(net, "cpu")(x, gates)
        executor = CudaExecutor(net, torch.float32, torch.device("cuda", 0), fusion)
        out = on_cpu(Runtime(net, "cuda", "a test", torch.float32, executor)(x.cuda(), gates))
        assert largest_error(out.logits, wanted.logits) <= 2e-5
        torch.testing.assert_close(out.gates, wanted.gates, rtol=1e-4, atol=1e-5)
        assert torch.equal(out.executed_nodes, wanted.executed_nodes)
        assert torch.equal(out.executed_macs, wanted.executed_macs)


@pytest.mark.parametrize("storage", DTYPES[1:], ids=str)
def test_error_is_no_more_than_twice_that_of_torch_at_that_precision(storage: torch.dtype) -> None:
    net = settled(random_network(gate_shift=-0.2, **FULL)).cuda()
    x = random_images(2, 256, 512).cuda()
    with torch.no_grad():
        wanted = net(x)
        own = copy.deepcopy(net).to(storage)(x.to(storage), gates=wanted.gates).logits
    out = dynroute.optimize(net, "cuda", storage)(x, wanted.gates)
    assert bool(torch.isfinite(own).all())
    assert largest_error(out.logits, wanted.logits) <= 2 * largest_error(own, wanted.logits)


@pytest.mark.parametrize("storage", DTYPES, ids=str)
def test_a_batch_never_changes_a_sample(storage: torch.dtype) -> None:
    run = dynroute.optimize(settled(random_network(gate_shift=-0.3, **FULL)), "cuda", storage)
    check_batch_never_changes_a_sample(run, random_images(5, 192, 320).cuda())


def test_labels() -> None:
    run = dynroute.optimize(settled(random_network(**FULL)), "cuda", torch.float16)
    x = random_images(2, 250, 300).cuda()
    assert torch.equal(run.labels(x), run(x).logits.argmax(1).to(torch.uint8))


def test_a_call_in_the_steady_state() -> None:
    """At most 80 kernels, no wait for the device, no memory but the outputs'."""
    run = dynroute.optimize(random_network(**FULL), "cuda", torch.float16)
    x = random_images(1, 256, 512).cuda()
    gates = run.all_open_gates().cuda()
    for _ in range(3):
        run(x, gates), run(x)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = run(x), run(x, gates), run.labels(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    del out
    assert torch.cuda.memory_allocated() == held
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(x)
        torch.cuda.synchronize()
    ours = [event for event in profile.events() if event.name.endswith("_f16")]
    assert 60 <= len(ours) <= 80


def test_streams_and_threads() -> None:
    run = dynroute.optimize(random_network(gate_shift=-0.3), "cuda")
    batches = [random_images(2, 64, 96, seed=seed).cuda() for seed in range(8)]
    wanted = [run(x) for x in batches]
    torch.cuda.synchronize()
    found: dict[int, object] = {}

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(5):
                for i in range(number, len(batches), 4):
                    found[i] = run(batches[i])
            torch.cuda.current_stream().synchronize()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, out in enumerate(wanted):
        same_bits(out, found[i])


def test_inside_a_graph_of_the_callers() -> None:
    """It may be replayed beside other calls, and when the runtime is gone."""
    net = random_network(gate_shift=-0.3)
    run = dynroute.optimize(net, "cuda", torch.bfloat16)
    x = random_images(2, 64, 96).cuda()
    other = random_images(2, 64, 96, seed=1).cuda()
    wanted = run(other).logits
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = run(x).logits
    large = random_images(4, 128, 128).cuda()
    beside = [run(large).logits for _ in range(2)]
    x.copy_(other)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(5):
            graph.replay()
    again = [run(large).logits for _ in range(5)]
    torch.cuda.synchronize()
    assert torch.equal(logits, wanted) and all(torch.equal(a, beside[0]) for a in (*beside, *again))
    del run
    gc.collect()
    rubbish = [torch.full((1 << 20,), float("nan"), device="cuda") for _ in range(64)]
    logits.zero_()
    graph.replay()
    assert torch.equal(logits, wanted) and len(rubbish) == 64


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_gpu() -> None:
    net = random_network(gate_shift=-0.3)
    x = random_images(2, 64, 96)
    wanted = None
    for index in (0, 1, 0):
        run = dynroute.optimize(net.to(f"cuda:{index}"), "cuda")
        for _ in range(3):
            logits = run(x.to(run.device)).logits.cpu()
            wanted = logits if wanted is None else wanted
            assert torch.equal(logits, wanted)


def test_auto_takes_the_gpu_where_the_network_is() -> None:
    net = random_network()
    assert dynroute.optimize(net).backend == "cpu"
    run = dynroute.optimize(net.cuda())
    assert run.backend == "cuda" and run.device.type == "cuda"
    with pytest.raises(ValueError, match=r"images: wanted float32 on cuda:\d, got torch\.float32 on cpu"):
        run(random_images(1, 32, 32))
