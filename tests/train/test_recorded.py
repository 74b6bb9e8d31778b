"""A training step as a CUDA graph: what the CPU can show of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dynroute
from dynroute.train import ConfigError, train
from dynroute.train.config import OptimiserConfig
from dynroute.train.optimiser import make_optimiser
from dynroute.train.recorded import RecordedStep
from tests.support.networks import random_images, random_network
from tests.support.runs import small

BUDGET = dynroute.Budget(0.5, 0.4, start=0.5, ramp=0.3)


def test_what_cannot_be_recorded_says_so(tmp_path: Path) -> None:
    net = random_network().train()
    with pytest.raises(ValueError, match="net: wanted on a GPU for a recorded step, got cpu"):
        RecordedStep(net, make_optimiser(net, OptimiserConfig()), None, 5.0)
    with pytest.raises(ConfigError, match=r"run\.graph: wanted a GPU, this run is on cpu"):
        train(small(tmp_path / "run", "run.graph=true", "run.device=cpu"), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("ops", ["auto", "reference"])
def test_progress_on_the_device(ops: str) -> None:
    """A scalar tensor does what the number does; drop path draws other numbers, so here nothing or all is dropped."""
    net = random_network(channels=16, layers=4, drop_prob=0.0).train().use_ops(ops)
    images, labels = random_images(2, 64, 64), torch.randint(0, 5, (2, 64, 64))
    for progress in (0.0, 0.6, 1.0):
        of_number = dynroute.objective(net, images, labels, progress, BUDGET)
        of_tensor = dynroute.objective(net, images, labels, torch.tensor(progress), BUDGET, bridge=0.0)
        torch.testing.assert_close(of_tensor["budget"], of_number["budget"])
        assert torch.equal(of_tensor["segmentation"], of_number["segmentation"])


def test_drop_path_by_a_tensor() -> None:
    """Samples are kept as often as asked, and scaled so that the mean stays."""
    torch.manual_seed(0)
    factors = dynroute.models.fused.drop_factor(torch.zeros(20_000, 1), torch.tensor(0.8), torch.float32)
    assert set(factors.tolist()) == {0.0, 1.25}
    assert abs(factors.mean().item() - 1) < 0.02
