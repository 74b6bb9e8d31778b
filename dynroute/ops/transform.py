"""A path between scales: ReLU -> 1x1 -> scale and shift -> ReLU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, gradients, reference
from dynroute.ops.registration import flop_formula, nhwc_empty, register, taking_part


def transform(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    open: Tensor | None = None,
    stride: int = 1,
    backend: str = "auto",
) -> Tensor:
    """ReLU -> 1x1 convolution with a stride -> scale and shift -> ReLU, over the open samples.

    Args:
        x: [N, C, H, W], C a multiple of 8; samples that are not open are not read.
        weight: [Cout, C, 1, 1], Cout a multiple of 4.
        scale: [Cout].
        shift: [Cout].
        open: bool [N], or None for all.
        stride: 1 or 2; with 2 only every second pixel and row is read.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        [N, Cout, ceil(H / stride), ceil(W / stride)] in channels_last; zeros for samples that are not open.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend.
    """
    return backends.operator("transform", backend, x)(x, weight, scale, shift, open, stride)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.stride = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, scale, shift, open = ctx.saved_tensors
    x = reference.only(open, x)
    product = F.conv2d(x.relu(), weight, None, ctx.stride)
    grad = reference.only(open, grad) * (reference.affine(product, scale, shift) > 0)
    grad, grad_scale, grad_shift = gradients.affine(grad, product, scale)
    grad, grad_weight = gradients.conv(grad, x.relu(), weight, ctx.stride)
    return grad * (x > 0), grad_weight, grad_scale, grad_shift, None, None


autograd.define("transform", _backward, _setup_context)


@flop_formula("transform")
def _(x, weight, scale, shift, open, stride) -> int:  # type: ignore[no-untyped-def]
    n, c, h, w = x.shape
    return 2 * taking_part(open, n) * ((h - 1) // stride + 1) * ((w - 1) // stride + 1) * c * weight.shape[0]


def _register() -> None:
    @torch.library.register_fake("dynroute::transform")
    def _(x, weight, scale, shift, open, stride):  # type: ignore[no-untyped-def]
        n, _, h, w = x.shape
        return nhwc_empty(x, (n, weight.shape[0], (h - 1) // stride + 1, (w - 1) // stride + 1))


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "transform")
backends.register(
    "transform",
    backends.cuda_kernels("transform"),
    backends.cpu_kernels("transform"),
    backends.triton_kernels("transform"),
    backends.Backend("reference", reference.transform, backends.anywhere),
)
