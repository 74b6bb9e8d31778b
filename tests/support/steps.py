"""One training step of a network, for tests that compare operators with each other."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

import dynroute
from dynroute.models.network import DynamicNetwork
from tests.support.networks import random_images


def step(
    net: DynamicNetwork, ops: str, side: int = 64, lowered: torch.dtype | None = None, device: str = "cpu"
) -> dict[str, Tensor]:
    """Losses, gradients and running statistics of one step of a copy on these operators, by name, on the CPU.

    lowered: autocast's type, None without.
    """
    net = copy.deepcopy(net).to(device).use_ops(ops)
    dtype = next(net.parameters()).dtype
    images = random_images(2, side, side).to(device, dtype).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (2, side, side), generator=torch.Generator().manual_seed(1)).to(device)
    torch.manual_seed(2)  # the drop path's
    with torch.autocast(device, lowered or torch.bfloat16, enabled=lowered is not None):
        losses = dynroute.objective(net, images, labels, progress=0.5, budget=dynroute.Budget(0.5, 0.4))
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    statistics = {name: value for name, value in net.named_buffers() if value.is_floating_point()}
    return {k: v.detach().cpu() for k, v in {**losses, **gradients, **statistics}.items()}


def check_same(got: dict[str, Tensor], wanted: dict[str, Tensor], of_each: float = 1e-3) -> float:
    """Each value of a step within a share of its tensor's largest; how far off all are, as a share of their norm."""
    assert wanted.keys() == got.keys() and len(wanted) > 300
    for name, value in wanted.items():
        largest = value.abs().max().item()
        torch.testing.assert_close(
            got[name], value, rtol=0, atol=of_each * largest + 1e-9, msg=lambda m, name=name: f"{name}: {m}"
        )
    off = sum(((got[n] - v) ** 2).sum() for n, v in wanted.items()) / sum((v**2).sum() for v in wanted.values())
    return float(off.sqrt())  # type: ignore[union-attr]
