"""bfloat16 storage of the CPU engine: its error against torch's own at that precision, its routes, its memory."""

from __future__ import annotations

import copy

import pytest
import torch

import dynroute
from tests.support.networks import largest_error, random_gates, random_images, random_network

SHAPES = [
    {},
    {"small_gate": True},
    {"gate": "fixed", "channels": 16},
    {"cell": "sepconv1", "channels": 16},
    {"cell": "sepconv3", "channels": 24, "layers": 4},
    {"channels": 32, "num_classes": 19, "layers": 5},
]


@pytest.mark.parametrize("config", SHAPES)
def test_error_is_no_more_than_twice_that_of_torch_in_bf16(config: dict) -> None:
    """Routes forced, so that both compute the same; wanted: float32."""
    net = random_network(**config)
    x = random_images(2, 96, 128)
    gates = random_gates(net, 2, 0.8)
    with torch.no_grad():
        wanted = net(x, gates=gates).logits
        torch_error = largest_error(copy.deepcopy(net).bfloat16()(x.bfloat16(), gates=gates).logits, wanted)
    out = dynroute.optimize(net, "cpu", torch.bfloat16)(x, gates)
    assert out.logits.dtype == torch.float32 and out.logits.isfinite().all()
    assert largest_error(out.logits, wanted) <= 2 * torch_error
    full = dynroute.optimize(net, "cpu")(x, gates)
    assert torch.equal(out.executed_nodes, full.executed_nodes) and torch.equal(out.executed_macs, full.executed_macs)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_never_changes_a_sample(threads: int) -> None:
    run = dynroute.optimize(random_network(gate_shift=-0.3, channels=16), "cpu", torch.bfloat16)
    x = random_images(5, 96, 128)
    alone = [run(x[i : i + 1]) for i in range(5)]
    torch.set_num_threads(threads)
    try:
        batch = run(x)
    finally:
        torch.set_num_threads(1)
    for name in ("logits", "gates", "executed_nodes"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(one, name) for one in alone])), name


def test_a_stored_map_is_rounded_to_nearest_even() -> None:
    """A network of nothing but copies: what comes out is what torch's own rounding makes of the logits' terms."""
    net = random_network(gate="fixed")
    torch.nn.init.zeros_(net.decoder.predictor.weight)
    bias = net.decoder.predictor.bias
    assert bias is not None
    bias.data = torch.tensor([1.00390625, 1.01171875, -1.00390625, 3.14159265, 1e-30])
    out = dynroute.optimize(net, "cpu", torch.bfloat16)(random_images(1, 64, 64))
    assert torch.equal(out.logits[0, :, 0, 0], bias.data.bfloat16().float())


def test_takes_half_the_memory() -> None:
    net = random_network(channels=32)
    full, half = dynroute.optimize(net, "cpu"), dynroute.optimize(net, "cpu", torch.bfloat16)
    x = random_images(1, 256, 256)
    full(x), half(x)
    assert half.workspace_bytes <= 0.55 * full.workspace_bytes
    assert half.weight_bytes <= 0.6 * full.weight_bytes


def test_errors() -> None:
    net = random_network()
    with pytest.raises(ValueError, match=r"storage: torch\.float16 wants the cuda or triton backend, got cpu"):
        dynroute.optimize(net, "cpu", torch.float16)
    with pytest.raises(ValueError, match=r"storage: .* wants the cpu, cuda or triton backend, got reference"):
        dynroute.optimize(net, "reference", torch.bfloat16)
