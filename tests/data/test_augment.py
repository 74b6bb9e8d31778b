"""Augmentation keeps image and labels together."""

from __future__ import annotations

import numpy as np
import pytest

from dynroute.data import Augmentation, Normalise, ScenesDataset

PLAIN = Normalise(mean=(0.0, 0.0, 0.0), order="rgb")


def smooth_scene(height: int = 120, width: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """Labels in broad fields, and an image whose first channel is 20 x the label."""
    y, x = np.mgrid[:height, :width]
    mask = ((x // 40) + 4 * (y // 40)).astype(np.uint8)
    return np.repeat((mask * 20)[..., None], 3, axis=2), mask


@pytest.mark.parametrize("options", [{}, {"flip": False}, {"short_sides": (60, 240)}, {"scale": (1.0, 1.0)}])
def test_image_and_labels_stay_aligned(options: dict) -> None:
    image, mask = smooth_scene()
    augment = Augmentation(crop=(96, 96), normalise=PLAIN, **options)
    for seed in range(20):
        pixels, labels = augment(image, mask, np.random.default_rng(seed))
        assert pixels.shape == (96, 96, 3) and pixels.dtype == np.float32
        assert labels.shape == (96, 96) and labels.dtype == np.uint8
        kept = labels != 255
        # A field's inside shows its label exactly; only borders blend.
        agree = np.abs(pixels[..., 0][kept] - 20.0 * labels[kept]) < 1
        assert agree.mean() > 0.85
        # Borders blend evenly to both sides: a shift of the labels would show as a bias.
        error = (pixels[..., 0] - 20.0 * labels)[:, :][kept]
        assert abs(error.mean()) < 1.0


def test_a_flip_is_exact() -> None:
    image, mask = ScenesDataset(1, 64).read(0)
    augment = Augmentation(crop=(64, 64), scale=(1.0, 1.0), normalise=PLAIN)
    results = [augment(image, mask, np.random.default_rng(seed)) for seed in range(12)]
    straight = [np.array_equal(pixels, image) and np.array_equal(labels, mask) for pixels, labels in results]
    turned = [
        np.array_equal(pixels, image[:, ::-1]) and np.array_equal(labels, mask[:, ::-1]) for pixels, labels in results
    ]
    assert any(straight) and any(turned)
    assert all(one != other for one, other in zip(straight, turned))


def test_padding_is_zero_and_ignored() -> None:
    image, mask = ScenesDataset(1, 64).read(0)
    augment = Augmentation(crop=(100, 80), scale=(1.0, 1.0), flip=False)
    pixels, labels = augment(image, mask, np.random.default_rng(0))
    assert (pixels[64:] == 0).all() and (pixels[:, 64:] == 0).all()
    assert (labels[64:] == 255).all() and (labels[:, 64:] == 255).all()
    np.testing.assert_array_equal(labels[:64, :64], mask)


def test_jitter_stays_in_range_and_leaves_labels() -> None:
    image, mask = ScenesDataset(1, 64).read(0)
    plain = Augmentation(crop=(64, 64), normalise=PLAIN)
    jittered = Augmentation(crop=(64, 64), normalise=PLAIN, jitter=0.4)
    one, two = (augment(image, mask, np.random.default_rng(4)) for augment in (plain, jittered))
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], two[0])
    assert two[0].min() >= 0 and two[0].max() <= 255
