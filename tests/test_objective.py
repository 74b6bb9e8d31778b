"""The training objective."""

from __future__ import annotations

import pytest
import torch

import dynroute
from tests.support.networks import random_images, random_network


def test_objective_leaves_budget_out_and_survives_an_ignored_batch() -> None:
    net = random_network().train()
    images = random_images(2, 32, 32)
    labels = torch.full((2, 32, 32), 255)
    losses = dynroute.objective(net, images, labels, progress=0.5)
    assert list(losses) == ["segmentation"] and losses["segmentation"].item() == 0
    with pytest.raises(ValueError, match="labels: wanted"):
        dynroute.objective(net, images, labels[:1], progress=0.5)
    with pytest.raises(ValueError, match="progress: wanted"):
        dynroute.objective(net, images, labels, progress=1.5)
