"""The runtime as its callers see it: the choice of a backend, inputs of any layout, outputs of their own, errors."""

from __future__ import annotations

import re

import pytest
import torch

import dynroute
from dynroute.native import library
from dynroute.space.wiring import KEEP
from tests.support.backends import BACKENDS
from tests.support.networks import largest_error, random_images, random_network, same_bits


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_fresh_and_the_snapshot_is_apart(backend: str) -> None:
    net = random_network()
    run = dynroute.optimize(net, backend)
    x = random_images(2, 64, 64)
    first = run(x)
    kept = first.logits.clone()
    for p in net.parameters():
        p.data.zero_()
    assert torch.equal(run(x).logits, kept)
    run(random_images(2, 64, 64, seed=9))
    assert torch.equal(first.logits, kept)
    x.zero_()
    assert torch.equal(first.logits, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_any_layout(backend: str) -> None:
    run = dynroute.optimize(random_network(), backend)
    empty = run(torch.zeros(0, 3, 40, 50))
    assert empty.logits.shape == (0, 5, 40, 50) and empty.executed_nodes.shape == (0, 7, 4, 5)
    x = random_images(2, 64, 96)
    wanted = run(x).logits
    assert torch.equal(run(x.to(memory_format=torch.channels_last)).logits, wanted)
    wide = torch.empty(2, 3, 64, 192)
    wide[..., ::2] = x
    assert torch.equal(run(wide[..., ::2]).logits, wanted)


@pytest.mark.parametrize("backend, storage", [(b, torch.float32) for b in BACKENDS] + [("cpu", torch.bfloat16)])
def test_absent_scales_leave_nothing_behind(backend: str, storage: torch.dtype) -> None:
    """Maps of the call before lie where an absent node's would: the decoder must not read them."""
    net = random_network(layers=4)
    run, x = dynroute.optimize(net, backend, storage), random_images(2, 64, 64)
    narrow = torch.zeros(5, 4, 3)
    narrow[:, 0, KEEP] = 0.5
    run(x)
    run(x, run.all_open_gates())
    after = run(x, narrow)
    same_bits(after, dynroute.optimize(net, backend, storage)(x, narrow))
    with torch.no_grad():
        wanted = net(x, narrow).logits
    assert largest_error(after.logits, wanted) <= (1e-5 if storage == torch.float32 else 2e-2)


def test_choosing_a_backend() -> None:
    net = random_network()
    assert dynroute.optimize(net).backend == "cpu" and dynroute.optimize(net).reason
    reason = library.why_not_cuda()
    if reason is not None:
        with pytest.raises(ValueError, match=re.escape(f"backend 'cuda': {reason}")):
            dynroute.optimize(net, "cuda")
    with pytest.raises(ValueError, match="wanted auto or one of"):
        dynroute.optimize(net, "gpu")
    study = random_network(cell="mbconv", layers=4)
    with pytest.raises(ValueError, match="cell: the native engine runs"):
        dynroute.optimize(study, "cpu")
    assert dynroute.optimize(study).backend == "reference"
    assert "mbconv" in dynroute.optimize(study).reason


@pytest.mark.parametrize("backend", BACKENDS)
def test_input_errors(backend: str) -> None:
    run = dynroute.optimize(random_network(), backend)
    with pytest.raises(ValueError, match="images: wanted float32"):
        run(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="images: wanted float32"):
        run(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match="gates: wanted"):
        run(torch.zeros(1, 3, 32, 32), gates=torch.zeros(1, 3, 4, 3))
