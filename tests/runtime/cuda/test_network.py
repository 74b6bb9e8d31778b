"""The whole network on the emulator: goldens, errors in 16 bits, counts, and what must not change a bit."""

from __future__ import annotations

import copy
import pickle
import shutil
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import dynroute
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.emulated import EmulatedExecutor
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits
from dynroute.runtime.executor import Runtime
from tests.support.cuda.devices import A100, H100
from tests.support.goldens import EVAL, check_eval, load
from tests.support.nans import check_nan_stays
from tests.support.networks import (
    check_batch_never_changes_a_sample,
    largest_error,
    random_gates,
    random_images,
    random_network,
    same_bits,
)

needs_emulator = pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")
HALVES = DTYPES[1:]
GOLDENS = [path for path, _ in EVAL if path.stem in ("public_l4", "public_l6_small", "public_l8_closed")]
# With room for tiles of up to 32 channels: of 8 to 64 three scales are fused, and one is staged.
MIXED = A100._replace(shared_per_block=54 << 10)
WAYS: dict[str, dict[str, Any]] = {"fused": {}, "staged": {"fusion": "staged"}, "mixed": {"limits": MIXED}}


def emulated(net, storage=torch.float32, **settings) -> Runtime:
    """The runtime that `optimize` makes for "cuda-emulated", with settings of its executor."""
    return Runtime(net, "cuda-emulated", "a test", storage, EmulatedExecutor(net, storage, **settings))


def check_against_cpu(out, net, x, gates=None) -> None:
    """float32: logits within rounding, every count exact."""
    cpu = dynroute.optimize(net, "cpu")(x, gates)
    assert largest_error(out.logits, cpu.logits) <= 1e-5
    torch.testing.assert_close(out.gates, cpu.gates, rtol=1e-4, atol=1e-5)
    assert torch.equal(out.executed_nodes, cpu.executed_nodes)
    assert torch.equal(out.executed_macs, cpu.executed_macs)
    assert (out.halo_macs >= 0).all()


@needs_emulator
@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_goldens(path) -> None:
    _, golden, net, (images, _) = load(path)
    out = dynroute.optimize(net, "cuda-emulated")(images)
    check_eval(out, golden)
    check_against_cpu(out, net, images)


@needs_emulator
@pytest.mark.parametrize("storage", HALVES, ids=str)
@pytest.mark.parametrize(
    "config", [{"channels": 16}, {"channels": 24, "small_gate": True}, {"cell": "sepconv3"}], ids=str
)
def test_error_is_no_more_than_twice_that_of_torch_at_that_precision(config, storage: torch.dtype) -> None:
    """Routes forced to be those of float32, so that all compute the same."""
    net = random_network(gate_shift=-0.2, layers=5, **config)
    x = random_images(2, 64, 96)
    with torch.no_grad():
        wanted = net(x)
        own = copy.deepcopy(net).to(storage)(x.to(storage), gates=wanted.gates).logits
    out = dynroute.optimize(net, "cuda-emulated", storage)(x, wanted.gates)
    assert out.logits.dtype == torch.float32
    assert largest_error(out.logits, wanted.logits) <= 2 * largest_error(own, wanted.logits)
    assert torch.equal(out.gates, wanted.gates)


@needs_emulator
@pytest.mark.parametrize("storage", HALVES, ids=str)
def test_gates_in_16_bits(storage: torch.dtype) -> None:
    """Alphas follow float32's, and what is counted follows the alphas."""
    net = random_network(gate_shift=1.0, layers=4)  # far from the threshold: one route for all precisions
    x = random_images(2, 64, 64)
    out, cpu = (
        dynroute.optimize(net, backend, t)(x) for backend, t in (("cuda-emulated", storage), ("cpu", DTYPES[0]))
    )
    torch.testing.assert_close(out.gates, cpu.gates, rtol=0, atol=2e-3 if storage == torch.float16 else 2e-2)
    assert torch.equal(out.executed_nodes, cpu.executed_nodes)


@needs_emulator
@pytest.mark.parametrize("storage", DTYPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_never_changes_a_sample(way: str, storage: torch.dtype) -> None:
    net = random_network(gate_shift=-0.3)
    run = emulated(net, storage, **WAYS[way])
    check_batch_never_changes_a_sample(run, random_images(3, 64, 64))


@needs_emulator
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8, 1.0])
def test_random_patterns(share: float) -> None:
    """Memory is NaN before, so that a read of what no one wrote shows; and the same bits come out of one workspace,
    where buffers share memory, and of blocks that run side by side."""
    net = random_network(layers=7)
    x = random_images(2, 64, 96)
    gates = random_gates(net, 2, share, seed=int(10 * share))
    outs = {}
    for way, options in WAYS.items():
        outs[way] = emulated(net, **options)(x, gates)
        check_against_cpu(outs[way], net, x, gates)
        same_bits(outs["fused"], outs[way], ("executed_nodes", "executed_macs"))
    same_bits(outs["fused"], emulated(net, one_workspace=True)(x, gates))
    same_bits(outs["mixed"], emulated(net, **WAYS["mixed"], one_workspace=True, resident=3, order="rand")(x, gates))


CONFIGS = [
    {"cell": "sepconv1", "channels": 16},
    {"cell": "sepconv3", "channels": 24},
    {"gate": "sigmoid", "num_classes": 1},
    {"gate": "softmax", "stem_width": 8, "channels": 40},
    {"gate": "fixed", "num_classes": 21},
    {"small_gate": True, "channels": 64, "stem_width": 64},
    {"in_channels": 1},
    {"in_channels": 4, "stem_width": 72},
]


@needs_emulator
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_kind_of_network(config: dict) -> None:
    net = random_network(gate_shift=-0.3, layers=4, **config)
    small = config.get("small_gate", False)
    n, h, w = (1, 128, 128) if small else (2, 33, 50)  # 33x50 is padded, and cropped again
    x = random_images(n, h, w, channels=net.config.in_channels)
    check_against_cpu(emulated(net)(x), net, x)


@needs_emulator
@pytest.mark.parametrize("fusion", ["auto", "fused"])
def test_wide_scales_run_stage_by_stage(fusion: str) -> None:
    """64 to 512 channels: of the four scales one is fused, or two where that is asked for."""
    net = random_network(layers=4, channels=64, gate="fixed")
    x = random_images(1, 32, 32)
    run = emulated(net, torch.float16, fusion=fusion)
    out = run(x)
    found = [kernel for kernel, _ in run.executor.statistics]
    assert found.count("cell") == found.count("stage_paths") == 5
    assert found.count("sepconv") - 2 == (4 if fusion == "auto" else 3)  # rows with staged scales
    with torch.no_grad():
        assert largest_error(out.logits, net(x).logits) < 5e-3


@needs_emulator
@pytest.mark.parametrize("storage", HALVES, ids=str)
def test_the_stem_in_one_pass_and_in_two(storage: torch.dtype) -> None:
    """Odd tiles; its memory lies elsewhere then."""
    net = random_network(layers=4, channels=16, stem_width=24)
    x = random_images(2, 50, 78)
    with torch.no_grad():
        wanted = net(x)
        own = copy.deepcopy(net).to(storage)(x.to(storage), gates=wanted.gates).logits
    outs = {}
    for fusion, kernel in (("auto", "stem_stages"), ("staged", "sepconv")):
        run = emulated(net, storage, fusion=fusion, limits=H100)
        outs[fusion] = run(x, wanted.gates)
        assert run.executor.statistics[2][0] == kernel
        assert largest_error(outs[fusion].logits, wanted.logits) <= 2 * largest_error(own, wanted.logits)
    same_bits(outs["auto"], outs["staged"], ("executed_nodes", "executed_macs"))
    same_bits(outs["auto"], emulated(net, storage, limits=H100, one_workspace=True, order="rand")(x, wanted.gates))


@needs_emulator
@pytest.mark.parametrize("storage", [torch.float32, torch.float16], ids=str)
def test_no_schedule_changes_a_bit(storage: torch.dtype) -> None:
    net = random_network(gate_shift=-0.2, layers=4)
    x = random_images(2, 64, 64)
    wanted = emulated(net, storage)(x)
    for options in ({"order": "rev"}, {"order": "rand", "seed": 1}):
        same_bits(wanted, emulated(net, storage, **options)(x))


@needs_emulator
def test_labels() -> None:
    """The classes of the logits, of a batch, cropped; on every backend."""
    net = random_network(layers=4, num_classes=7)
    x = random_images(2, 50, 70)
    for backend in ("cuda-emulated", "cpu", "reference"):
        run = dynroute.optimize(net, backend)
        labels = run.labels(x)
        assert labels.dtype == torch.uint8 and labels.shape == (2, 50, 70)
        assert torch.equal(labels, run(x).logits.argmax(1).to(torch.uint8))


@needs_emulator
def test_empty_batch() -> None:
    run = dynroute.optimize(random_network(), "cuda-emulated")
    empty = run(torch.zeros(0, 3, 40, 50))
    assert empty.logits.shape == (0, 5, 40, 50) and empty.executed_nodes.shape == (0, 7, 4, 5)
    assert run.labels(torch.zeros(0, 3, 40, 50)).shape == (0, 40, 50)


@needs_emulator
@pytest.mark.parametrize("fusion", ["fused", "staged"])
def test_a_device_changes_no_bit(fusion: str) -> None:
    """Grids and tiles follow the device's limits, results do not: an A100, one of three multiprocessors, an H100. Which
    scales "auto" fuses does depend on the device, and in which order a cell adds on whether it is fused."""
    net = random_network(gate_shift=-0.2, layers=4, channels=16)
    x = random_images(2, 64, 64)
    wanted = emulated(net, fusion=fusion)(x)
    for limits in (DeviceLimits(80, 3, 99 << 10, 100 << 10), H100):
        same_bits(wanted, emulated(net, fusion=fusion, limits=limits)(x))


def test_the_reason_when_there_is_no_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(ValueError, match="backend 'cuda-emulated': nvcc was not found"):
        dynroute.optimize(random_network(), "cuda-emulated")


@needs_emulator
@pytest.mark.parametrize("way, storage", zip(WAYS, DTYPES), ids=str)
def test_nan_stays(way: str, storage: torch.dtype) -> None:
    net = random_network(layers=4, gate_shift=-0.3)
    check_nan_stays(emulated(net, storage, **WAYS[way]), net, 2)


@needs_emulator
def test_copies_and_flops() -> None:
    run, x = emulated(random_network(layers=4)), random_images(1, 32, 32)
    with FlopCounterMode(display=False) as counter:
        wanted = run(x)
    assert counter.get_total_flops() == 2 * int(wanted.executed_macs.sum())
    for other in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        same_bits(other(x), wanted)
