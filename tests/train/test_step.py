"""A training step does to the weights what it says."""

from __future__ import annotations

import copy

import pytest
import torch

from dynroute.train.step import train_step
from tests.support.networks import random_images, random_network


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradients_norm_is_clipped(accumulate: int) -> None:
    """Plain SGD moves the weights by as much as the learning rate times the gradient."""
    net = random_network(channels=16, layers=4).train()
    images, labels = random_images(4, 64, 64), torch.zeros(4, 64, 64, dtype=torch.int64)
    moved = {}
    for clip_norm in (1e9, 0.25):
        own = copy.deepcopy(net)
        optimiser = torch.optim.SGD(own.parameters(), lr=1.0)
        train_step(own, optimiser, images, labels, 0.0, None, clip_norm, accumulate=accumulate)
        steps = [(a - b).detach().flatten() for a, b in zip(own.parameters(), net.parameters(), strict=True)]
        moved[clip_norm] = torch.cat(steps)
    norm = moved[1e9].norm().item()
    assert norm > 0.5, "there should have been something to clip"
    assert moved[0.25].norm().item() == pytest.approx(0.25, rel=1e-3)
    torch.testing.assert_close(moved[0.25], moved[1e9] * (0.25 / norm), rtol=1e-2, atol=1e-6)
