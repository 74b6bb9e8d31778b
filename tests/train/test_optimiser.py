"""Learning rate, parameter groups and precise BatchNorm."""

import pytest
import torch
from torch import nn

import dynroute
from dynroute.train.config import OptimiserConfig, ScheduleConfig
from dynroute.train.optimiser import learning_rate, make_optimiser, precise_batchnorm, set_learning_rate


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.05 * 0.001),
        (500, 0.05 * (1 - 500 / 190_000) ** 0.9 * (0.001 * 0.5 + 0.5)),
        (1000, 0.05 * (1 - 1000 / 190_000) ** 0.9),
        (95_000, 0.05 * 0.5**0.9),
        (189_999, 0.05 * (1 / 190_000) ** 0.9),
    ],
)
def test_learning_rate(step: int, expected: float) -> None:
    assert learning_rate(step, 0.05, ScheduleConfig()) == pytest.approx(expected, rel=1e-12)


def test_no_warmup() -> None:
    assert learning_rate(0, 0.05, ScheduleConfig(steps=10, warmup_steps=0)) == 0.05


def test_groups() -> None:
    net = dynroute.create_model("dynamic_tiny", num_classes=3)
    optimiser = make_optimiser(net, OptimiserConfig(gate_lr_factor=2.5))
    set_learning_rate(optimiser, 0.02)
    group_of = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    gates = {id(p) for p in net.gate_parameters()}
    assert len(group_of) == len(list(net.parameters()))
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            group = group_of[id(parameter)]
            assert group["weight_decay"] == (0.0 if isinstance(module, nn.BatchNorm2d) else 1e-4)
            assert group["lr"] == pytest.approx(0.05 if id(parameter) in gates else 0.02)
            assert group["momentum"] == 0.9


def test_precise_batchnorm_is_the_plain_mean() -> None:
    norm = nn.BatchNorm2d(3).eval()
    batches = [torch.randn(4, 3, 5, 5) * (k + 1) + k for k in range(3)]
    norm(torch.randn(2, 3, 4, 4))
    precise_batchnorm(norm, batches)
    assert norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
    assert norm.momentum == 0.1 and not norm.training
    with pytest.raises(ValueError, match="at least one batch"):
        precise_batchnorm(norm, [])
