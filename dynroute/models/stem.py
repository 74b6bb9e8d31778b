"""Image to the 1/4-scale map the grid starts from."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.models import fused
from dynroute.models.layers import ConvNorm, depthwise
from dynroute.space.wiring import padded_size


class Stem(nn.Module):
    """conv3x3 s2 without padding I->W, dw3x3 + pw W->W, dw3x3 s2 + pw W->C, each with BN and ReLU.

    The missing padding makes the half-scale maps (H/2 - 1) x (W/2 - 1); the last stage lands on H/4 x W/4 again.

    Args:
        channels: C, at 1/4 scale.
        width: W; 64 in the published code whatever C is.
        in_channels: I, of the images; 3 in the published code.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it

    def __init__(self, channels: int, width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        self.conv = ConvNorm(in_channels, width, 3, 2, padding=0, relu=True)
        self.depthwise1 = depthwise(width)
        self.pointwise1 = ConvNorm(width, width, relu=True)
        self.depthwise2 = depthwise(width, stride=2)
        self.pointwise2 = ConvNorm(width, channels, relu=True)

    def forward(self, images: Tensor) -> Tensor:
        """images [N,I,H,W] -> [N,C,H/4,W/4]."""
        x = self.conv(images)
        for depthwise_, pointwise in ((self.depthwise1, self.pointwise1), (self.depthwise2, self.pointwise2)):
            if fused.is_on(self):
                x = fused.sepconv((depthwise_, pointwise), x, self.train_ops, final_relu=True)
            else:
                x = pointwise(depthwise_(x))
        return x


def pad_images(images: Tensor, small_gate: bool) -> Tensor:
    """Zeros right and bottom to a multiple of 32; with the small gate a side below 128 goes to 128 (SPEC)."""
    h, w = images.shape[-2:]
    to_h, to_w = padded_size(h, w, small_gate)
    return F.pad(images, (0, to_w - w, 0, to_h - h)) if (to_h, to_w) != (h, w) else images
