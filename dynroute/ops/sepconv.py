"""Fused depthwise 3x3 -> pointwise -> scale and shift, one to three times over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, gradients, reference
from dynroute.ops.registration import flop_formula, nhwc_empty, register, taking_part


def sepconv(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    scale: Sequence[Tensor],
    shift: Sequence[Tensor],
    open: Tensor | None = None,
    stride: int = 1,
    residual: bool = False,
    final_relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Stacked separable convolutions over the open samples; ReLU between stages.

    Args:
        x: [N, C, H, W], C a multiple of 8, any strides; samples that are not open are not read.
        depthwise: 1 to 3 weights [C, 1, 3, 3], padding 1.
        pointwise: as many weights [Cout, Cin, 1, 1], Cout a multiple of 8.
        scale: as many [Cout], multiplied onto the pointwise product.
        shift: as many [Cout], added after.
        open: bool [N], or None for all.
        stride: 1 or 2, of the first stage.
        residual: add x to the last stage's output (stride 1 and Cout = C only).
        final_relu: end with a ReLU, after the residual.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        [N, Cout, H', W'] in channels_last, H' = ceil(H / stride); zeros for samples that are not open.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend.
    """
    run = backends.operator("sepconv", backend, x)
    return run(x, list(depthwise), list(pointwise), list(scale), list(shift), open, stride, residual, final_relu)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, depthwise, pointwise, scale, shift, open, *ctx.options = inputs
    ctx.stages = len(depthwise)
    ctx.save_for_backward(x, open, *depthwise, *pointwise, *scale, *shift)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, open, *weights = ctx.saved_tensors
    k = ctx.stages
    depthwise, pointwise, scale, shift = (weights[i * k : (i + 1) * k] for i in range(4))
    stride, residual, final_relu = ctx.options
    strides = [stride, *[1] * (k - 1)]

    # the forward again, keeping each stage's input and depthwise output
    x = reference.only(open, x)
    inputs, filtered, products = [x], [], []
    for i in range(k):
        filtered.append(F.conv2d(inputs[i], depthwise[i], None, strides[i], 1, 1, inputs[i].shape[1]))
        products.append(F.conv2d(filtered[i], pointwise[i]))
        inputs.append(reference.affine(products[i], scale[i], shift[i]))
        if i < k - 1:
            inputs[-1] = inputs[-1].relu()

    grad = reference.only(open, grad)
    if final_relu:
        grad = grad * ((inputs[-1] + x if residual else inputs[-1]) > 0)
    grad_residual = grad
    grads: list[list[Tensor]] = [[], [], [], []]
    for i in reversed(range(k)):
        if i < k - 1:
            grad = grad * (inputs[i + 1] > 0)
        grad, grad_scale, grad_shift = gradients.affine(grad, products[i], scale[i])
        grad, grad_pointwise = gradients.conv(grad, filtered[i], pointwise[i])
        grad, grad_depthwise = gradients.conv(grad, inputs[i], depthwise[i], strides[i], 1, inputs[i].shape[1])
        for part, value in zip(grads, (grad_depthwise, grad_pointwise, grad_scale, grad_shift)):
            part.insert(0, value)
    return grad + grad_residual if residual else grad, *grads, None, None, None, None


autograd.define("sepconv", _backward, _setup_context)


@flop_formula("sepconv")
def _(x, depthwise, pointwise, scale, shift, open, stride, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    n, _, h, w = x.shape
    pixels = taking_part(open, n) * ((h - 1) // stride + 1) * ((w - 1) // stride + 1)
    return 2 * pixels * sum(p.shape[1] * (9 + p.shape[0]) for p in pointwise)


def _register() -> None:
    @torch.library.register_fake("dynroute::sepconv")
    def _(x, depthwise, pointwise, scale, shift, open, stride, residual, final_relu):  # type: ignore[no-untyped-def]
        n, _, h, w = x.shape
        shape = (n, pointwise[-1].shape[0], (h - 1) // stride + 1, (w - 1) // stride + 1)
        return nhwc_empty(x, shape)


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "sepconv")
backends.register(
    "sepconv",
    backends.cuda_kernels("sepconv"),
    backends.cpu_kernels("sepconv"),
    backends.triton_kernels("sepconv"),
    backends.Backend("reference", reference.sepconv, backends.anywhere),
)
