"""Joint augmentation of an image and its labels, and the normalisation that the network expects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dynroute.data.source import IGNORE

BGR_MEAN = (103.53, 116.28, 123.675)
"""Channel means of the published recipe, blue first."""
MEAN, STD = 127.5, 57.0
"""Of each channel, where there are not three."""


@dataclass(frozen=True)
class Normalise:
    """From 8-bit values to the network's input: (pixel - mean) / std, channels in `order` where there are three.

    The published recipe is BGR minus (103.53, 116.28, 123.675), not divided (SPEC "Training"); a std near 57 gives
    inputs of unit variance, which suits short runs. `mean` and `std` have a number for each channel.
    """

    mean: tuple[float, ...] = BGR_MEAN
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    order: str = "bgr"
    range: tuple[float, float] | None = None
    """The stored values that pictures have 0 and 255 for, see `dynroute.data.images.eight_bits`; None: by their
    type."""

    def __post_init__(self) -> None:
        if self.order not in ("bgr", "rgb"):
            raise ValueError(f"order must be 'bgr' or 'rgb', got {self.order!r}")
        if not 1 <= len(self.mean) == len(self.std):
            raise ValueError(f"mean and std: wanted as many numbers of both, got {len(self.mean)} and {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        if self.range is not None and not -math.inf < self.range[0] < self.range[1] < math.inf:
            raise ValueError(f"range: wanted low < high, got {list(self.range)}")

    @property
    def channels(self) -> int:
        """Of an image."""
        return len(self.mean)

    @staticmethod
    def of(
        channels: int,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        order: str = "bgr",
        range: tuple[float, float] | None = None,
    ) -> Normalise:
        """With the defaults for so many channels: the published ones for three, `MEAN` and `STD` for others."""
        published = channels == 3
        return Normalise(
            mean or (BGR_MEAN if published else (MEAN,) * channels),
            std or ((1.0 if published else STD),) * channels,
            order,
            range,
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Image uint8 or float [H, W, C], three channels in RGB -> float32 [H, W, C], contiguous.

        Raises ValueError for another number of channels.
        """
        if image.shape[-1] != self.channels:
            raise ValueError(f"image: wanted {self.channels} channels (data.channels), got {image.shape[-1]}")
        ordered = image[..., ::-1] if self.order == "bgr" and self.channels == 3 else image
        out = ordered.astype(np.float32, order="C")
        out -= np.asarray(self.mean, dtype=np.float32)
        if any(std != 1.0 for std in self.std):
            out *= 1.0 / np.asarray(self.std, dtype=np.float32)
        return out


@dataclass(frozen=True)
class Augmentation:
    """Random scale, crop, flip and colour jitter, then normalisation.

    Args:
        crop: height and width of what comes out.
        scale: range of the random scale, drawn evenly in its logarithm, so that halving is as likely as doubling.
        short_sides: the shortest side is scaled to one of these instead (the published Cityscapes recipe).
        flip: mirror left and right with probability 1/2.
        jitter: largest relative change of brightness and contrast, and, of three channels, of saturation; 0 leaves
            colours alone.
        normalise: the last step.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    short_sides: tuple[int, ...] = ()
    flip: bool = True
    jitter: float = 0.0
    normalise: Normalise = Normalise()

    def __call__(self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Augment one sample.

        Args:
            image: uint8 [H, W, C]; three channels are RGB.
            mask: uint8 [H, W].
            rng: the only source of chance.

        Returns:
            image float32 [crop height, crop width, C], normalised, 0 where padded; labels uint8 of the same size, 255
            where padded. What is too small for the crop is padded on the right and at the bottom, as the network does.
        """
        # Every number is drawn, needed or not, so that switching one augmentation leaves the others as they were.
        draws = rng.random(8)
        crop_h, crop_w = self.crop
        height, width = mask.shape
        factor = self._factor(min(height, width), draws[0])
        scaled_h, scaled_w = max(1, round(height * factor)), max(1, round(width * factor))
        kept_h, kept_w = min(crop_h, scaled_h), min(crop_w, scaled_w)
        top = int(draws[1] * (scaled_h - kept_h + 1))
        left = int(draws[2] * (scaled_w - kept_w + 1))

        # Cropping and scaling are one step: only the pixels that are kept are ever resampled.
        step_y, step_x = height / scaled_h, width / scaled_w
        box = (left * step_x, top * step_y, (left + kept_w) * step_x, (top + kept_h) * step_y)
        cut_image, cut_mask = _resample(image, mask, box, (kept_w, kept_h))
        if self.flip and draws[3] < 0.5:
            cut_image, cut_mask = cut_image[:, ::-1], cut_mask[:, ::-1]
        if self.jitter > 0:
            cut_image = _jitter(cut_image, self.jitter, draws[4:7])

        pixels = self.normalise(cut_image)
        if (kept_h, kept_w) == (crop_h, crop_w):
            return pixels, np.ascontiguousarray(cut_mask)
        out = np.zeros((crop_h, crop_w, pixels.shape[2]), dtype=np.float32)
        labels = np.full((crop_h, crop_w), IGNORE, dtype=np.uint8)
        out[:kept_h, :kept_w] = pixels
        labels[:kept_h, :kept_w] = cut_mask
        return out, labels

    def _factor(self, short_side: int, draw: float) -> float:
        if self.short_sides:
            return self.short_sides[int(draw * len(self.short_sides))] / short_side
        low, high = self.scale
        return float(low * (high / low) ** draw)


def _resample(
    image: np.ndarray, mask: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """`box` (left, top, right, bottom) of both, at `size` (width, height): bilinear and nearest."""
    left, top, right, bottom = box
    if (right - left, bottom - top) == size and left.is_integer() and top.is_integer():
        rows, columns = slice(int(top), int(bottom)), slice(int(left), int(right))
        return image[rows, columns], mask[rows, columns]

    def resized(values: np.ndarray, how: Image.Resampling) -> np.ndarray:
        return np.asarray(Image.fromarray(values).resize(size, how, box=box))

    labels = resized(mask, Image.Resampling.NEAREST)
    if image.shape[2] == 3:
        return resized(image, Image.Resampling.BILINEAR), labels
    # one by one: Pillow takes two or four for colours with alpha, and weighs them by it
    planes = [np.ascontiguousarray(image[..., c]) for c in range(image.shape[2])]
    return np.stack([resized(plane, Image.Resampling.BILINEAR) for plane in planes], axis=2), labels


def _jitter(image: np.ndarray, amount: float, draws: np.ndarray) -> np.ndarray:
    """Brightness, contrast and, of three channels, saturation, each by a factor of 1 +- amount at most; float32
    [H, W, C] in 0..255."""
    brightness, contrast, saturation = (1.0 + amount * (2.0 * draws - 1.0)).astype(np.float32)
    out = image.astype(np.float32) * brightness
    out = (out - out.mean()) * contrast + out.mean()
    if image.shape[2] == 3:
        grey = out.mean(axis=2, keepdims=True)
        out = (out - grey) * saturation + grey
    return np.clip(out, 0.0, 255.0)
