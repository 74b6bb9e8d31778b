"""A network that trains on the fused operators against the same network in plain PyTorch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from tests.support.networks import random_images, random_network

needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


def step(net: DynamicNetwork, ops: str, bf16: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One forward and backward of a copy: the losses, and gradients and buffers by name."""
    net = copy.deepcopy(net).use_ops(ops)
    weight = next(net.parameters())
    images = random_images(3, 96, 64).to(weight.dtype).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (3, 96, 64), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # the drop path's
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        losses = dynroute.objective(net, images, labels, progress=0.5, budget=dynroute.Budget(0.5, 0.4))
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, {**gradients, **dict(net.named_buffers())}


@needs_library
@pytest.mark.parametrize(
    "config",
    [{}, {"layers": 5, "channels": 24}, {"small_gate": True}, {"drop_prob": 0.4}, {"cell": ("sepconv", "dilconv")}],
    ids=str,
)
def test_step(config: dict[str, Any]) -> None:
    """In float64, where no ReLU's sign hangs on rounding: losses, every gradient, every running statistic."""
    net = random_network(**{"channels": 16, "layers": 4, **config}).train().double()
    (losses, values), (fused_losses, fused_values) = step(net, "reference"), step(net, "cpu")
    for name, loss in losses.items():
        torch.testing.assert_close(fused_losses[name], loss, rtol=1e-11, atol=1e-13)
    assert values.keys() == fused_values.keys()
    largest = max(v.abs().max().item() for name, v in values.items() if name.endswith("weight"))
    for name, value in values.items():
        torch.testing.assert_close(
            fused_values[name], value, rtol=1e-8, atol=1e-10 * largest, msg=lambda m, name=name: f"{name}: {m}"
        )


@needs_library
def test_step_in_float32() -> None:
    net = random_network(channels=16, layers=4).train()
    losses, _ = step(net, "reference")
    fused, values = step(net, "auto")
    for name, loss in losses.items():
        torch.testing.assert_close(fused[name], loss, rtol=1e-4, atol=1e-6)
    assert all(v.isfinite().all() for v in values.values())


@needs_library
def test_step_under_autocast() -> None:
    """The operators keep float32 where autocast lowers what surrounds them."""
    net = random_network(channels=16, layers=4).train()
    losses, _ = step(net, "reference")
    fused, values = step(net, "cpu", bf16=True)
    torch.testing.assert_close(fused["segmentation"].float(), losses["segmentation"], rtol=0.05, atol=0)
    assert all(v.isfinite().all() for v in values.values())


@needs_library
def test_frozen_statistics() -> None:
    """BatchNorm modules in evaluation mode inside a network that trains keep their statistics."""
    net = random_network(channels=16, layers=4).train().double()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    before = {name: value.clone() for name, value in net.named_buffers()}
    (losses, values), (fused_losses, fused_values) = step(net, "reference"), step(net, "cpu")
    for name, loss in losses.items():
        torch.testing.assert_close(fused_losses[name], loss, rtol=1e-11, atol=1e-13)
    for name, value in before.items():
        assert torch.equal(values[name], value) and torch.equal(fused_values[name], value), name


def test_evaluation_is_the_same_whatever_is_chosen() -> None:
    net = random_network(channels=16, layers=4)
    images = random_images(2, 64, 96)
    with torch.no_grad():
        expected = net(images).logits
        assert torch.equal(net.use_ops("auto")(images).logits, expected)


def test_choices() -> None:
    net = dynroute.create_model("dynamic_tiny")
    assert net.ops == "reference" and dynroute.create_model("dynamic_tiny", ops="auto").ops == "auto"
    with pytest.raises(ValueError, match="ops: wanted one of auto, cuda, triton, cpu, reference, got 'tpu'"):
        net.use_ops("tpu")
    with pytest.raises(ValueError, match="ops: 'triton' cannot be used: node_train: it is not built yet"):
        net.use_ops("triton")
    assert net.ops == "reference"


@needs_library
def test_batchnorms_that_one_operator_cannot_compute() -> None:
    net = random_network(channels=16, layers=4).train()
    net.grid[0][0].cell.ops[0][1].norm.eval()
    with pytest.raises(ValueError, match="ops: the fused operators need BatchNorm2d modules that agree in mode"):
        step(net, "cpu")
