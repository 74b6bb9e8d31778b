"""The training objective."""

from __future__ import annotations

import pytest
import torch

import dynroute
from dynroute.measure.memory import allocations
from dynroute.native import library
from tests.support.networks import random_images, random_network

needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))


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


@pytest.mark.parametrize("ops", ["reference", pytest.param("cpu", marks=needs_library)])
def test_the_mean_is_of_labelled_pixels(ops: str) -> None:
    """Three quarters ignored: by hand, the mean of -log p of the others, not of all."""
    net = random_network(channels=16, layers=4).train().use_ops(ops)
    images, labels = random_images(2, 64, 64), torch.full((2, 64, 64), 255)
    labels[:, ::2, ::2] = torch.randint(0, 5, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    losses = dynroute.objective(net, images, labels, progress=0.0)
    log_p = losses.output.logits.detach().double().log_softmax(1)
    kept = labels != 255
    by_hand = -log_p.gather(1, labels.clamp(max=4)[:, None])[:, 0][kept].sum() / kept.sum()
    assert kept.sum() == 2 * 32 * 32
    assert losses["segmentation"].item() == pytest.approx(by_hand.item(), rel=1e-5)


@needs_library
def test_class_weights() -> None:
    net = random_network(channels=16).train().double()
    images = random_images(2, 44, 50).double()
    labels = torch.randint(0, 5, (2, 44, 50), generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 1, 0, 2, 3], dtype=torch.float64)
    plain, weighted, fused = (
        dynroute.objective(net.use_ops(ops), images, labels, progress=0.0, class_weights=given)["segmentation"]
        for ops, given in (("reference", None), ("reference", weights), ("cpu", weights))
    )
    torch.testing.assert_close(fused, weighted, rtol=1e-11, atol=0)
    assert abs(plain - weighted) > 0.01


@needs_library
def test_logits_of_full_size_only_where_somebody_reads_them() -> None:
    net = random_network(channels=16, num_classes=7).train()
    images, labels = random_images(2, 64, 96), torch.zeros(2, 64, 96, dtype=torch.int64)
    full_size = 2 * 7 * 64 * 96 * 4

    def step() -> None:
        losses = dynroute.objective(net, images, labels, progress=0.5)
        losses["segmentation"].backward()

    for ops, made in (("reference", True), ("cpu", False)):
        net.use_ops(ops)
        step()
        assert (full_size in allocations(step)) == made, ops
