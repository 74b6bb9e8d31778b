"""The two building blocks every part of the network is made of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.models import fused

BN_EPS = 1e-5
BN_MOMENTUM = 0.1


class ConvNorm(nn.Conv2d):
    """Convolution without bias, BatchNorm, optional ReLU; the norm is the child `norm`, as in published checkpoints.

    Args:
        channels_in, channels_out, kernel, stride, groups, dilation: as in `nn.Conv2d`.
        padding: None pads by half the (dilated) kernel.
        relu: apply ReLU after the norm.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it
    norm_group = ""  # whose BatchNorms are one with its own in training; `dynroute.models.fused.join` sets it

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        stride: int = 1,
        *,
        groups: int = 1,
        dilation: int = 1,
        padding: int | None = None,
        relu: bool = False,
    ) -> None:
        padding = dilation * (kernel // 2) if padding is None else padding
        super().__init__(
            channels_in, channels_out, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(channels_out, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.relu = relu
        self.is_pointwise = relu and kernel == 1 and groups == 1 and channels_in % 8 == 0 and channels_out % 4 == 0

    def forward(self, x: Tensor) -> Tensor:
        """x [N,Cin,H,W] -> [N,Cout,H',W']."""
        if not fused.is_on(self):
            y = fused.norm(self, super().forward(x))
        elif self.is_pointwise:
            return fused.transform(self, self.norm, x, self.train_ops)
        else:
            y = fused.norm(self, fused.convolve(self, x))
        return F.relu(y, inplace=True) if self.relu else y


def depthwise(channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    """Depthwise convolution, no bias, no norm (SPEC: no BatchNorm after a depthwise)."""
    return nn.Conv2d(
        channels, channels, kernel, stride, dilation * (kernel // 2), dilation=dilation, groups=channels, bias=False
    )


def upsample(x: Tensor, factor: int) -> Tensor:
    """Bilinear, align_corners=False: [N,C,H,W] -> [N,C,factor*H,factor*W]."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def init_weights(module: nn.Module) -> None:
    """Kaiming-normal (fan_in) for every convolution, biases 0 (SPEC, Training); gates set their own bias afterwards."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_in", nonlinearity="relu")
            if m.bias is not None:
                nn.init.zeros_(m.bias)


def fold_norm(conv: ConvNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift [Cout] that the evaluation-mode norm of `conv` amounts to: y = conv(x) * scale + shift."""
    norm = conv.norm
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach() * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale
