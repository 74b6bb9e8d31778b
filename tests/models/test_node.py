"""One node of the space: closed samples, and the bridge."""

from __future__ import annotations

import torch

from tests.support.networks import random_network


def test_closed_sample_passes_its_input() -> None:
    node = random_network().rows()[1][0]
    x = torch.randn(2, 8, 16, 16)
    alphas = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    keep = node(x, alphas)[1]
    assert torch.equal(keep[0], x[0]) and not torch.equal(keep[1], x[1])


def test_the_bridge_makes_closing_continuous_in_training_only() -> None:
    node = random_network().rows()[3][1].train()
    x = torch.randn(4, 16, 8, 8)
    sums = torch.tensor([0.0, 0.1, 0.5, 2.0])
    alphas = sums[:, None] * torch.tensor([0.0, 1.0, 0.0])
    plain, bridged = node(x, alphas)[1], node(x, alphas, bridge=1.0)[1]
    for i, share in enumerate((1.0, 0.9, 0.5, 0.0)):
        wanted = x[i] if i == 0 else plain[i] + share * x[i]
        torch.testing.assert_close(bridged[i], wanted)
    node.eval()
    assert torch.equal(node(x, alphas, bridge=1.0)[1], node(x, alphas)[1])
