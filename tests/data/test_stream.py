"""Augmentation keeps image and labels together; the stream is a function of seed and position."""

import numpy as np
import pytest
import torch

from dynroute.data import BGR_MEAN, Augmentation, Normalise, ScenesDataset, batches

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


def test_normalisation_is_bgr_minus_mean() -> None:
    image = np.array([[[10, 20, 30]]], dtype=np.uint8)
    expected = [30 - BGR_MEAN[0], 20 - BGR_MEAN[1], 10 - BGR_MEAN[2]]
    np.testing.assert_allclose(Normalise()(image)[0, 0], expected, rtol=1e-6)
    scaled = Normalise(std=(2.0, 4.0, 5.0), order="rgb", mean=(0.0, 0.0, 0.0))
    np.testing.assert_allclose(scaled(image)[0, 0], [5, 5, 6], rtol=1e-6)
    with pytest.raises(ValueError, match="order"):
        Normalise(order="hsv")


def test_jitter_stays_in_range_and_leaves_labels() -> None:
    image, mask = ScenesDataset(1, 64).read(0)
    plain = Augmentation(crop=(64, 64), normalise=PLAIN)
    jittered = Augmentation(crop=(64, 64), normalise=PLAIN, jitter=0.4)
    one, two = (augment(image, mask, np.random.default_rng(4)) for augment in (plain, jittered))
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], two[0])
    assert two[0].min() >= 0 and two[0].max() <= 255


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
