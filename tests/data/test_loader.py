"""The stream of batches is a function of seed and position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dynroute.data import Augmentation, ScenesDataset, batches


def stream(start: int = 0, stop: int = 6, workers: int = 0, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches(ScenesDataset(10, 64), Augmentation(crop=(48, 48)), 4, seed, start, stop, workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_stream_can_start_anywhere(workers: int) -> None:
    whole, later = stream(), stream(start=3, workers=workers)
    assert len(whole) == 6 and len(later) == 3
    for (images, labels), (own_images, own_labels) in zip(whole[3:], later):
        assert torch.equal(images, own_images) and torch.equal(labels, own_labels)
    assert not torch.equal(whole[0][0], stream(seed=2)[0][0])


def test_batches_are_channels_last() -> None:
    images, labels = stream(stop=1)[0]
    assert images.shape == (4, 3, 48, 48) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (4, 48, 48) and labels.dtype == torch.uint8


def test_an_epoch_shows_every_sample_once() -> None:
    seen: list[int] = []

    class Counting(ScenesDataset):
        def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            seen.append(index)
            return super().read(index)

    list(batches(Counting(10, 64), Augmentation(crop=(48, 48)), 5, 0, 0, 4, workers=0))
    assert sorted(seen[:10]) == list(range(10)) == sorted(seen[10:]) and seen[:10] != seen[10:]


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    stream(stop=2, workers=1)
    assert torch.equal(before, torch.get_rng_state())
