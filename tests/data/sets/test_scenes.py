"""Procedural scenes: determinism and that difficulty means something."""

import hashlib

import numpy as np
import pytest

from dynroute.data import ScenesDataset


def test_samples_are_the_same_bits_everywhere() -> None:
    digest = hashlib.sha256()
    for index in (0, 1, 7, 100):
        for part in ScenesDataset(128, 160, seed=3).read(index):
            digest.update(part.tobytes())
    assert digest.hexdigest() == "11116881c15ebe95f6ce0ef7955b8411dc7f6728dff1dd181a96409164403d50"


def test_a_sample_depends_on_seed_and_index_alone() -> None:
    first, longer = ScenesDataset(8, 96, seed=5), ScenesDataset(64, 96, seed=5)
    longer.read(3)
    for ours, theirs in zip(first.read(6), longer.read(6)):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(first.read(6)[0], ScenesDataset(8, 96, seed=6).read(6)[0])
    assert not np.array_equal(first.read(6)[0], first.read(5)[0])


def test_shapes_types_and_classes() -> None:
    data = ScenesDataset(48, 128)
    seen: set[int] = set()
    for index in range(48):
        image, mask = data.read(index)
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert mask.shape == (128, 128) and mask.dtype == np.uint8
        seen |= set(np.unique(mask).tolist())
    assert seen == set(range(len(data.class_names)))


def test_difficult_images_hold_more_edges() -> None:
    data = ScenesDataset(200)
    hardness = np.array([data.difficulty(k) for k in range(200)])
    edges = np.array([(np.diff(data.read(k)[1].astype(int), axis=1) != 0).mean() for k in range(200)])
    assert 0 <= hardness.min() < 0.05 and 0.95 < hardness.max() < 1
    assert edges[hardness > 0.8].mean() > 3 * edges[hardness < 0.2].mean()


def test_errors() -> None:
    with pytest.raises(ValueError, match="size must be at least 32, got 16"):
        ScenesDataset(4, 16)
    with pytest.raises(IndexError):
        ScenesDataset(4).read(4)
