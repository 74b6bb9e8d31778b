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
    images = random_images(3, 96, 64, channels=net.config.in_channels).to(weight.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
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
    [
        {}, {"layers": 5, "channels": 24}, {"small_gate": True}, {"drop_prob": 0.4}, {"cell": ("sepconv", "dilconv")},
        {"in_channels": 1}, {"in_channels": 5},
    ],
    ids=str,
)  # fmt: skip
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
def test_memory_under_autocast() -> None:
    """What a step keeps shrinks where autocast to bfloat16 asks for it, not where it asks for float16."""
    net = random_network(channels=32, layers=8).train().use_ops("cpu")
    images = random_images(2, 128, 128).contiguous(memory_format=torch.channels_last)
    kept = {}
    for dtype in (None, torch.float16, torch.bfloat16):
        sizes: dict[int, int] = {}

        def note(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None),
        ):
            out = net(images)  # held while sizes are summed
        kept[dtype] = sum(sizes.values())
        del out
    assert kept[torch.bfloat16] < 0.8 * kept[None]
    assert kept[torch.float16] > 0.95 * kept[None]


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


def test_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dynroute.create_model("dynamic_tiny")
    assert net.ops == "reference" and dynroute.create_model("dynamic_tiny", ops="auto").ops == "auto"
    with pytest.raises(ValueError, match="ops: wanted one of auto, cuda, triton, cpu, reference, got 'tpu'"):
        net.use_ops("tpu")
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET")
        with pytest.raises(ValueError, match=r"ops: 'triton' cannot be used: node_train: triton"):
            net.use_ops("triton")
    assert net.ops == "reference"
    other = dynroute.create_model("dynamic_tiny", cell=("bottleneck",))
    with pytest.warns(UserWarning, match="ops: cells of bottleneck have no fused form and stay plain PyTorch"):
        other.use_ops("auto")


@needs_library
def test_batchnorms_that_one_operator_cannot_compute() -> None:
    net = random_network(channels=16, layers=4).train()
    net.grid[0][0].cell.ops[0][1].norm.eval()
    with pytest.raises(ValueError, match="ops: the fused operators need BatchNorm2d modules that agree in mode"):
        step(net, "cpu")


def routes(n: int, layers: int, closed: float = 0.4) -> Tensor:
    """Alphas of random routes, and sample 1 closed everywhere."""
    generator = torch.Generator().manual_seed(3)
    gates = torch.rand(n, layers + 1, 4, 3, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    gates = gates * (torch.rand(n, layers + 1, 4, 1, generator=generator) >= closed)
    gates[1] = 0.0
    return gates


def forward_backward(net: DynamicNetwork, images: Tensor, gates: Tensor, sample: int | None = None) -> list[Tensor]:
    """Logits of one sample or all, and the gradients and buffers of the space, in float64."""
    net = copy.deepcopy(net)
    logits = net(images, gates=gates).logits
    logits = logits if sample is None else logits[sample : sample + 1]
    (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ).sum().backward()
    values = [p.grad for node in (net.init, net.grid) for p in node.parameters() if p.grad is not None]
    return [logits.detach(), *values, *(b for node in (net.init, net.grid) for b in node.buffers())]


def agree(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10 * max(1.0, e.abs().max().item()))


@pytest.mark.parametrize("ops", ["reference", pytest.param("cpu", marks=needs_library)])
def test_frozen_and_skipping_is_the_dense_network(ops: str) -> None:
    net = random_network(channels=16, layers=4).train().double()
    images, gates = random_images(3, 64, 96).double(), routes(3, 4)
    dense = copy.deepcopy(net)
    for module in dense.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    net.use_ops(ops).bn = "frozen"
    agree(forward_backward(net, images, gates), forward_backward(dense, images, gates))


@needs_library
@pytest.mark.parametrize("ops", ["reference", "cpu"])
def test_open_is_the_dense_network_without_the_closed(ops: str) -> None:
    """A sample that is closed everywhere is nowhere seen: the space is what it is for the others alone."""
    net = random_network(channels=16, layers=4).train().double()
    for part in (net.stem, net.decoder):  # these see every sample, open or not
        for module in part.modules():
            module.training = False
    images, gates = random_images(3, 64, 96).double(), routes(3, 4, closed=0.0)
    kept = torch.tensor([True, False, True])
    whole, alone = copy.deepcopy(net).use_ops(ops), copy.deepcopy(net).use_ops(ops)
    whole.bn, alone.bn = "open", "all"
    for sample, place in ((0, 0), (2, 1)):
        agree(
            forward_backward(whole, images, gates, sample),
            forward_backward(alone, images[kept], gates[kept], place),
        )


@needs_library
@pytest.mark.parametrize("bn", ["open", "frozen"])
def test_work_goes_down_with_the_closed(bn: str) -> None:
    net = random_network(channels=16, layers=4).train().use_ops("cpu")
    images, gates = random_images(3, 64, 96), routes(3, 4)

    def work(bn: str, gates: Tensor) -> int:
        net.bn = bn
        before = library.total_macs()
        net(images, gates=gates).logits.sum().backward()
        return library.total_macs() - before

    everything = work("all", gates)
    assert work("all", torch.ones_like(gates)) == everything == work(bn, torch.ones_like(gates))
    assert work(bn, torch.zeros_like(gates)) < work(bn, gates) < 0.8 * everything


def test_batchnorm_choices() -> None:
    net = dynroute.create_model("dynamic_tiny")
    with pytest.raises(ValueError, match="bn: wanted one of all, open, frozen, got 'some'"):
        net.bn = "some"
    net.bn = "frozen"
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (
        net.training
        and not any(norm.training for norm in norms)
        and not any(n.training for n in net.train().modules() if n in norms)
    )
    net.bn = "all"
    assert all(norm.training for norm in norms)
    other = dynroute.create_model("dynamic_tiny", cell=("bottleneck",))
    with pytest.raises(ValueError, match="bn: 'open' needs sepconv cells of 3x3, this network's are bottleneck"):
        other.bn = "open"
