"""Fused depthwise 3x3 -> pointwise -> scale and shift, one to three times over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dynroute import _native
from dynroute.ops import _backend, reference


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
        backend: "auto", "cpu" or "reference".

    Returns:
        [N, Cout, H', W'] in channels_last, H' = ceil(H / stride); zeros for samples that are not open.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend.
    """
    if _backend.use_native("sepconv", backend, x):
        return torch.ops.dynroute.sepconv(
            x, list(depthwise), list(pointwise), list(scale), list(shift), open, stride, residual, final_relu
        )
    return reference.sepconv(x, depthwise, pointwise, scale, shift, open, stride, residual, final_relu)


def _register() -> None:
    @torch.library.register_fake("dynroute::sepconv")
    def _(x, depthwise, pointwise, scale, shift, open, stride, residual, final_relu):  # type: ignore[no-untyped-def]
        n, _, h, w = x.shape
        shape = (n, pointwise[-1].shape[0], (h - 1) // stride + 1, (w - 1) // stride + 1)
        return _backend.nhwc_empty(x, shape)

    @torch.library.custom_op("dynroute::sepconv_backward", mutates_args=())
    def sepconv_backward(
        grad: Tensor,
        x: Tensor,
        depthwise: Sequence[Tensor],
        pointwise: Sequence[Tensor],
        scale: Sequence[Tensor],
        shift: Sequence[Tensor],
        open: Tensor | None,
        stride: int,
        residual: bool,
        final_relu: bool,
    ) -> list[Tensor]:
        k = len(depthwise)

        def formula(x: Tensor, *weights: Tensor) -> Tensor:
            parts = [weights[i * k : (i + 1) * k] for i in range(4)]
            return reference.sepconv(x, *parts, open, stride, residual, final_relu)

        return _backend.recompute_grads(grad, [x, *depthwise, *pointwise, *scale, *shift], formula)

    @sepconv_backward.register_fake
    def _(grad, x, depthwise, pointwise, scale, shift, open, stride, residual, final_relu):  # type: ignore[no-untyped-def]
        return _backend.like_inputs([x, *depthwise, *pointwise, *scale, *shift])

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, depthwise, pointwise, scale, shift, open, *ctx.options = inputs
        ctx.stages = len(depthwise)
        ctx.save_for_backward(x, open, *depthwise, *pointwise, *scale, *shift)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, open, *weights = ctx.saved_tensors
        k = ctx.stages
        parts = [weights[i * k : (i + 1) * k] for i in range(4)]
        grads = torch.ops.dynroute.sepconv_backward(grad, x, *parts, open, *ctx.options)
        return grads[0], *[grads[1 + i * k : 1 + (i + 1) * k] for i in range(4)], None, None, None, None

    torch.library.register_autograd("dynroute::sepconv", backward, setup_context=setup_context)

    @register_flop_formula(torch.ops.dynroute.sepconv)
    def _(x, depthwise, pointwise, scale, shift, open, stride, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
        n, c, h, w = x
        pixels = n * ((h - 1) // stride + 1) * ((w - 1) // stride + 1)
        return 2 * pixels * sum(p[1] * (9 + p[0]) for p in map(_backend.flops_of, pointwise))


if _native.why_not_loaded() is None:
    _register()
