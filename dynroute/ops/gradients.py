"""Gradients of the pieces that operators are made of, as ATen calls: what torch.compile can trace."""

from __future__ import annotations

import torch
from torch import Tensor


def conv(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, groups: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradients of a 2D convolution for its input and its weight."""
    steps, pads = [stride, stride], [padding, padding]
    wanted = [True, True, False]
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, None, steps, pads, [1, 1], False, [0, 0], groups, wanted
    )
    return grads[0], grads[1]


def affine(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x * scale + shift per channel, for x, scale and shift."""
    return grad * scale.view(1, -1, 1, 1), (grad * x).sum((0, 2, 3)), grad.sum((0, 2, 3))


@torch.library.custom_op("dynroute::bilinear_backward", mutates_args=())
def bilinear(grad: Tensor, h: int, w: int, factor: float) -> Tensor:
    """Gradient of a bilinear resampling of [N, C, h, w] by a factor (align_corners=False) for its input.

    An operator of its own because ATen's has no fake kernel for symbolic sizes.
    """
    sizes = [*grad.shape[:2], h, w]
    return torch.ops.aten.upsample_bilinear2d_backward(grad, grad.shape[2:], sizes, False, factor, factor).contiguous()


@bilinear.register_fake
def _(grad, h, w, factor):  # type: ignore[no-untyped-def]
    return torch.empty((*grad.shape[:2], h, w), dtype=grad.dtype, device=grad.device)
