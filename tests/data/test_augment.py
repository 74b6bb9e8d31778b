"""Augmentation keeps image and labels together."""

from __future__ import annotations

import numpy as np
import pytest

from dynroute.data import Augmentation, Normalise, ScenesDataset

PLAIN = Normalise(mean=(0.0, 0.0, 0.0), order="rgb")


def plain(channels: int) -> Normalise:
    """Values as they are."""
    return Normalise((0.0,) * channels, (1.0,) * channels)


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


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
@pytest.mark.parametrize("options", [{}, {"scale": (1.0, 1.0)}, {"crop": (200, 200)}], ids=str)
def test_each_channel_is_what_it_would_be_among_three(channels: int, options: dict) -> None:
    """Scaled, cropped, flipped and padded alike, whatever lies beside it."""
    image = np.random.default_rng(0).integers(0, 256, (70, 90, channels), dtype=np.uint8)
    mask = smooth_scene(70, 90)[1]
    settings = {"crop": (64, 64), **options}
    for seed in range(4):
        pixels, labels = Augmentation(normalise=plain(channels), **settings)(image, mask, np.random.default_rng(seed))
        for c in range(channels):
            three = np.repeat(image[..., c : c + 1], 3, axis=2)
            wanted, of_three = Augmentation(normalise=PLAIN, **settings)(three, mask, np.random.default_rng(seed))
            np.testing.assert_array_equal(pixels[..., c], wanted[..., 0])
            np.testing.assert_array_equal(labels, of_three)


@pytest.mark.parametrize("channels", [1, 4])
def test_jitter_of_other_than_three_channels_leaves_saturation(channels: int) -> None:
    """Brightness and contrast alone: values stay a straight line of what they were."""
    image = np.random.default_rng(0).integers(80, 170, (64, 64, channels), dtype=np.uint8)
    augment = Augmentation(crop=(64, 64), scale=(1.0, 1.0), flip=False, normalise=plain(channels), jitter=0.3)
    pixels, _ = augment(image, np.zeros((64, 64), dtype=np.uint8), np.random.default_rng(1))
    slope, start = np.polyfit(image.ravel().astype(float), pixels.ravel(), 1)
    assert abs(slope - 1) > 0.02
    np.testing.assert_allclose(pixels, image * slope + start, atol=1e-3)


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_the_order_is_one_of_three_channels(order: str) -> None:
    image = np.arange(4, dtype=np.uint8).reshape(1, 1, 4)
    np.testing.assert_array_equal(
        Normalise((0.0, 1.0, 1.0, 1.0), (1.0, 1.0, 1.0, 2.0), order)(image)[0, 0], [0, 0, 1, 1]
    )
    three = Normalise((0.0,) * 3, order=order)(image[..., :3])[0, 0]
    np.testing.assert_array_equal(three, [2, 1, 0] if order == "bgr" else [0, 1, 2])


def test_defaults_by_the_number_of_channels() -> None:
    assert Normalise.of(3) == Normalise() and Normalise.of(3).channels == 3
    assert Normalise.of(2) == Normalise((127.5, 127.5), (57.0, 57.0))
    assert Normalise.of(1, (7.0,)) == Normalise((7.0,), (57.0,))
    with pytest.raises(ValueError, match="mean and std: wanted as many numbers of both, got 2 and 3"):
        Normalise((1.0, 2.0))
    with pytest.raises(ValueError, match=r"image: wanted 2 channels \(data.channels\), got 3"):
        Normalise.of(2)(np.zeros((4, 4, 3), dtype=np.uint8))
