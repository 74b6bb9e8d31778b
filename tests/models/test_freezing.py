"""Parts of a network that do not train: no gradient, no momentum, the same statistics, on all operators."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.train.config import OptimiserConfig
from dynroute.train.optimiser import make_optimiser, precise_batchnorm
from dynroute.train.step import train_step
from tests.support.networks import random_images, random_network

OPS = ("reference", "cpu") if library.why_not_loaded() is None else ("reference",)
PARTS = [
    ("stem",), ("init",), ("grid",), ("gates",), ("decoder",), ("stem", "init", "grid", "gates"), ("grid.1",),
    ("grid.1.0.cell",), ("grid.1.0.cell.ops.0.1",), ("grid.1.0.down", "grid.2.1.up"), ("decoder.predictor.bias",),
    ("stem.depthwise1", "grid.0.0.cell.ops.0.1.norm"),
]  # fmt: skip


def network(parts: tuple[str, ...], ops: str) -> DynamicNetwork:
    return random_network(layers=4, channels=16).train().double().use_ops(ops).freeze(*parts)


def stepped(net: DynamicNetwork, steps: int = 1) -> dict[str, Tensor]:
    """Gradients of the last of some steps."""
    images = random_images(2, 64, 64).double()
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    optimiser = make_optimiser(net, OptimiserConfig(lr=0.01, weight_decay=0.1))
    for _ in range(steps):
        torch.manual_seed(3)
        train_step(net, optimiser, images, labels, 0.5, dynroute.Budget(0.5, 0.4, measure="real"), 5.0)
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def is_of(name: str, parts: tuple[str, ...]) -> bool:
    return any(".gate." in name if part == "gates" else f"{name}.".startswith(f"{part}.") for part in parts)


@pytest.mark.parametrize("parts", PARTS, ids="+".join)
@pytest.mark.parametrize("ops", OPS)
def test_frozen_parts_keep_every_bit_and_the_others_train(ops: str, parts: tuple[str, ...]) -> None:
    net = network(parts, ops)
    before = copy.deepcopy(net.state_dict())
    gradients = stepped(net, 2)
    after = net.state_dict()
    trained = {name for name, _ in net.named_parameters() if not is_of(name, parts)}
    assert gradients.keys() == trained and 0 < len(trained) < len(list(net.parameters()))
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            kept = is_of(f"{name}.weight", parts) and is_of(f"{name}.bias", parts)
            assert module.training != kept, name
            for statistic in ("running_mean", "running_var", "num_batches_tracked"):
                key = f"{name}.{statistic}"
                assert torch.equal(before[key], after[key]) == kept, key
    for name, _ in net.named_parameters():
        stays = torch.equal(before[name], after[name])
        # a path that no sample takes has no gradient, but weights decay, unlike those of norms
        assert stays == (name not in trained) or (name in trained and ".norm." in name), name


@pytest.mark.skipif(len(OPS) == 1, reason="no library")
@pytest.mark.parametrize("parts", PARTS, ids="+".join)
def test_gradients_of_fused_operators_are_those_of_plain_pytorch(parts: tuple[str, ...]) -> None:
    wanted, got = (stepped(network(parts, ops)) for ops in OPS)
    assert wanted.keys() == got.keys()
    largest = max(value.abs().max().item() for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-7 * largest, msg=lambda m, n=name: f"{n}: {m}")


def test_precise_statistics_leave_frozen_ones() -> None:
    net = network(("stem", "grid.1.0.cell"), "reference")
    before = copy.deepcopy(net.state_dict())
    precise_batchnorm(net, [random_images(2, 64, 64).double()])
    after = net.state_dict()
    for name in after:
        if name.endswith("running_mean"):
            assert torch.equal(before[name], after[name]) == is_of(name, ("stem", "grid.1.0.cell")), name
    frozen = network(("stem", "init", "grid", "decoder"), "reference")
    precise_batchnorm(frozen, [])  # nothing to do


def test_thawed_again_and_evaluation_and_copies() -> None:
    net = network(("grid", "decoder.merge"), OPS[-1])
    assert net.frozen == ("grid", "decoder.merge")
    copied = copy.deepcopy(net)
    for one in (net, copied):
        assert not one.eval().grid[1][0].cell.ops[0][1].norm.training
        assert not one.train().grid[1][0].cell.ops[0][1].norm.training and one.stem.conv.norm.training
    net.freeze()
    assert all(p.requires_grad for p in net.parameters()) and net.frozen == ()
    assert all(m.training for m in net.modules())


def test_errors() -> None:
    net = random_network(layers=4)
    for part in ("grids", "grid.9", "stem.con", ""):
        with pytest.raises(
            ValueError, match=f"freeze: wanted parts of stem, init, grid, gates, decoder, or .*'{part}'"
        ):
            net.freeze("stem", part)
    assert all(p.requires_grad for p in net.parameters())
    net.bn = "open"
    net.freeze("grid.1", "gates")
    with pytest.raises(ValueError, match=r"with bn 'open' a node's cell and paths freeze together, .* grid\.1\.0"):
        net.freeze("grid.1.0.cell")
    net.bn = "all"
    net.freeze("grid.1.0.cell")
    with pytest.raises(ValueError, match="freeze together"):
        net.bn = "open"
    assert net.bn == "all"
    net.bn = "frozen"
    assert not any(m.training for m in net.train().modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("bn", ["open", "frozen"])
def test_beside_batchnorm_of_open_samples_or_none(bn: str) -> None:
    gradients = []
    for ops in OPS:
        net = network((), ops)
        net.bn = bn
        gradients.append(stepped(net.freeze("stem", "grid.1", "gates")))
    assert gradients[0].keys() == gradients[-1].keys()
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[-1][name], value, rtol=1e-6, atol=1e-9)
