"""The whole network in Triton, on a GPU or interpreted: goldens, values, counts, and what must not change a bit."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.ops.triton import configs
from dynroute.ops.triton.cuts import Cut
from dynroute.ops.triton.launch import DTYPES
from dynroute.runtime.executor import Runtime
from tests.support.goldens import EVAL, check_eval, load
from tests.support.nans import check_nan_stays
from tests.support.networks import (
    BITS,
    check_batch_never_changes_a_sample,
    largest_error,
    random_gates,
    random_images,
    random_network,
    same_bits,
)

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
GOLDENS = list({path.stem: path for path, _ in EVAL}.values())  # each once


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory is NaN before: what is not written shows."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def wide_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes its time for each program: fewer of them, of more pixels."""
    if not ON_GPU:
        monkeypatch.setattr("dynroute.runtime.triton.plan.PIXELS", 1 << 14)
        monkeypatch.setattr(configs, "find", lambda op, channels, dtype: Cut(256, *2 * [room_for(channels)]))


def room_for(channels: int) -> int:
    """A power of two from 16 to 64."""
    return 1 << min(max(channels - 1, 15).bit_length(), 6)


def run_of(net: DynamicNetwork, storage: torch.dtype = torch.float32) -> Runtime:
    return dynroute.optimize(net, "triton", storage)


def on_cpu(out: dynroute.RunOutput) -> SimpleNamespace:
    names = (*BITS, "expected_mflops", "real_mflops", "halo_macs")
    return SimpleNamespace(**{name: getattr(out, name).cpu() for name in names})


def check_against_reference(net: DynamicNetwork, x: Tensor, gates: Tensor | None = None) -> dynroute.RunOutput:
    """float32: logits within rounding, every count exact."""
    out = run_of(net)(x.to(DEVICE), gates)
    got, wanted = on_cpu(out), dynroute.optimize(net, "reference")(x, gates)
    assert got.logits.shape == wanted.logits.shape and largest_error(got.logits, wanted.logits) <= 1e-5
    torch.testing.assert_close(got.gates, wanted.gates, rtol=1e-4, atol=1e-5)
    assert torch.equal(got.executed_nodes, wanted.executed_nodes)
    assert torch.equal(got.executed_macs, wanted.executed_macs) and not got.halo_macs.any()
    return out


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_goldens(path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(configs, "find", lambda op, channels, dtype: Cut(1 << 10, *2 * [room_for(channels)]))
    _, golden, net, (images, _) = load(path)
    check_eval(on_cpu(run_of(net)(images.to(DEVICE))), golden)


@pytest.mark.parametrize(
    "config, n, size",
    [
        ({"cell": "sepconv1", "channels": 16, "gate": "sigmoid"}, 1, (33, 50)),  # padded, and cropped again
        ({"cell": "sepconv3", "channels": 24, "num_classes": 1}, 1, (32, 64)),
        ({"gate": "softmax", "stem_width": 24, "num_classes": 21}, 1, (32, 32)),
        ({"gate": "fixed"}, 1, (32, 64)),
        ({"small_gate": True}, 1, (20, 128)),
        ({"in_channels": 1}, 1, (32, 32)),
        ({"in_channels": 6}, 2, (32, 50)),
    ],
    ids=str,
)
def test_every_kind_of_network(config: dict, n: int, size: tuple[int, int]) -> None:
    net = random_network(gate_shift=-0.3, layers=4, **config)
    check_against_reference(net, random_images(n, *size, channels=net.config.in_channels))


def test_random_patterns() -> None:
    """A sample with all closed, one with nodes and paths closed and absent, one with all open; and their labels."""
    net = random_network(layers=5, num_classes=7)
    gates = torch.cat([random_gates(net, 1, share, seed=5) for share in (0.0, 0.5, 1.0)])
    gates[2] = gates[2].clamp(min=0.1)
    x = random_images(3, 30, 61)
    out = check_against_reference(net, x, gates)
    assert len(set(out.executed_macs.tolist())) == 3
    labels = run_of(net).labels(x.to(DEVICE), gates)
    assert labels.dtype == torch.uint8 and torch.equal(labels, out.logits.argmax(1).to(torch.uint8))


def test_alphas_around_the_threshold() -> None:
    """A path is closed at alpha <= 1e-4, a sample below a sum of 1e-4: three tiny paths make an open node of none."""
    net = random_network(layers=4)
    levels = torch.tensor([0.0, 0.2e-4, 0.6e-4, 1e-4, 1.5e-4, 0.5, 1.0])
    gates = levels[torch.randint(0, len(levels), (2, 5, 4, 3), generator=torch.Generator().manual_seed(3))]
    check_against_reference(net, random_images(2, 32, 32), gates)


@pytest.mark.parametrize("storage", DTYPES[1:], ids=str)
def test_in_16_bits(storage: torch.dtype) -> None:
    """Error, on the routes of float32, at most twice torch's own at that precision; alphas follow float32's."""
    net = random_network(gate_shift=1.0, layers=4)  # far from the threshold: one route for all
    x = random_images(1, 32, 64)
    with torch.no_grad():
        wanted = net(x)
        own = copy.deepcopy(net).to(storage)(x.to(storage), gates=wanted.gates).logits
    run = run_of(net, storage)
    out = on_cpu(run(x.to(DEVICE), wanted.gates))
    # Triton's interpreter cuts bfloat16's digits off where a GPU rounds: errors then go one way, and add up
    times = 10 if storage == torch.bfloat16 and not ON_GPU else 2
    assert largest_error(out.logits, wanted.logits) <= times * largest_error(own, wanted.logits)
    assert torch.equal(out.gates, wanted.gates) and out.logits.dtype == torch.float32
    free = on_cpu(run(x.to(DEVICE)))
    atol = times * (1e-3 if storage == torch.float16 else 1e-2)
    torch.testing.assert_close(free.gates, wanted.gates, rtol=0, atol=atol)
    assert torch.equal(free.executed_nodes[:, :, :, 1:], out.executed_nodes[:, :, :, 1:])
    full = run_of(net)
    full.labels(x.to(DEVICE), wanted.gates)
    assert run.weight_bytes < 0.75 * full.weight_bytes and run.workspace_bytes < 0.75 * full.workspace_bytes


@pytest.mark.parametrize("storage", DTYPES[:2], ids=str)
def test_a_batch_never_changes_a_sample(storage: torch.dtype) -> None:
    net = random_network(gate_shift=-0.5, layers=4)
    check_batch_never_changes_a_sample(run_of(net, storage), random_images(3, 32, 32).to(DEVICE))


def test_calls_do_not_meet() -> None:
    """Other shapes in between, a workspace that is NaN again, weights that change: outputs are the call's own."""
    net = random_network(gate_shift=-0.3, layers=4)
    run = run_of(net)
    x, larger = random_images(2, 32, 64).to(DEVICE), random_images(1, 64, 64, seed=1).to(DEVICE)
    first = run(x)
    kept = first.logits.clone()
    size = run.workspace_bytes
    for p in net.parameters():
        p.data.zero_()
    with torch.inference_mode():
        run(larger)
    assert run.workspace_bytes > size
    run.executor._memory.fill_(0xFF)
    same_bits(run(x), first)
    assert torch.equal(first.logits, kept)


def test_what_is_closed_is_not_computed() -> None:
    """Weights that are NaN where all samples are closed do no harm."""
    net = random_network(layers=5)
    gates = random_gates(net, 2, 0.4, seed=7)
    x = random_images(2, 32, 64)
    closed = (gates.sum(-1) < 1e-4).all(0)
    wanted = run_of(net)(x.to(DEVICE), gates)
    for members in net.rows():
        for node in members:
            if closed[node.node.row, node.node.scale]:
                for p in node.parameters():
                    p.data.fill_(torch.nan)
    got = run_of(net)(x.to(DEVICE), gates)
    assert closed.sum() > 5 and got.logits.isfinite().all()
    same_bits(got, wanted)


def test_no_samples() -> None:
    run = run_of(random_network())
    empty = run(torch.zeros(0, 3, 40, 50, device=DEVICE))
    assert empty.logits.shape == (0, 5, 40, 50) and empty.executed_nodes.shape == (0, 7, 4, 5)
    assert empty.executed_macs.shape == (0,)
    assert run.labels(torch.zeros(0, 3, 40, 50, device=DEVICE)).shape == (0, 40, 50)


def test_what_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"cell: the Triton kernels run .*, this network has mbconv"):
        run_of(random_network(cell="mbconv"))
    with pytest.raises(ValueError, match=r"storage: wanted torch\.float32, .* got torch\.float64"):
        run_of(random_network(), torch.float64)
    run, x = run_of(random_network()), torch.zeros(2, 3, 32, 32, device=DEVICE)
    with pytest.raises(ValueError, match="images: wanted float32 on"):
        run(x.double())
    monkeypatch.setattr("dynroute.runtime.triton.executor.MOST_SAMPLES", 1)
    with pytest.raises(ValueError, match="images: wanted at most 1 samples, got 2"):
        run(x)
    monkeypatch.setattr("dynroute.runtime.triton.executor.MOST_VALUES", 3 << 10)
    with pytest.raises(ValueError, match=r"wanted maps of fewer than 2\^31 values a sample, got 3600 at 32x32"):
        run(x[:1])


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_where_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted only by name; without Triton's interpreter not at all here."""
    net = random_network()
    assert dynroute.optimize(net).backend == "cpu" and run_of(net).reason == "chosen by name"
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="backend 'triton': triton needs a GPU; TRITON_INTERPRET=1 runs it on the CPU"):
        run_of(net)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=str)
def test_nan_stays(storage: torch.dtype) -> None:
    net = random_network(layers=4, gate_shift=-0.3)
    check_nan_stays(run_of(net, storage), net, 2)


def test_copies() -> None:
    run, x = run_of(random_network(layers=4)), random_images(1, 32, 32).to(DEVICE)
    wanted = run(x)
    for other in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        same_bits(other(x), wanted)


def test_flops_are_the_executed_ones() -> None:
    run, x = run_of(random_network(layers=4)), random_images(2, 32, 32).to(DEVICE)
    with FlopCounterMode(display=False) as counter:
        out = run(x)
    assert counter.get_total_flops() == 2 * int(out.executed_macs.sum())
