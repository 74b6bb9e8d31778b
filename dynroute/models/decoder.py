"""From the last layer's four maps to class logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dynroute import ops
from dynroute.models import fused
from dynroute.models.layers import ConvNorm, upsample
from dynroute.space.wiring import SCALES

LOGITS_FACTOR = 4  # from the low-resolution logits to the image


class Decoder(nn.Module):
    """From 1/32 to 1/4: f = ReLU(BN(1x1(f_s + up(f_{s+1})))), channels halve (kept at scale 0); conv3x3; bilinear x4.

    Args:
        channels: C at 1/4 scale.
        num_classes: K.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.merge = nn.ModuleList(ConvNorm(channels << s, channels << max(s - 1, 0), relu=True) for s in range(SCALES))
        self.predictor = nn.Conv2d(channels, num_classes, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps: [N, C*2^s, h/2^s, w/2^s] for s = 0..3 -> logits [N,K,4h,4w]; an absent map comes as zeros."""
        return upsample(self.low_logits(maps), LOGITS_FACTOR)

    def low_logits(self, maps: Sequence[Tensor]) -> Tensor:
        """The same before the last upsampling: [N,K,h,w]."""
        f = self.merge[3](maps[3])
        for s in (2, 1, 0):
            f = self.merge[s](self._join(maps[s], f))
        return fused.convolve(self.predictor, f) if fused.is_on(self) else self.predictor(f)

    def _join(self, fine: Tensor, coarse: Tensor) -> Tensor:
        if fused.is_on(self):
            return ops.aggregate(None, fine, coarse, backend=self.train_ops)
        return fine + upsample(coarse, 2)
