"""The segmentation loss from logits at low resolution: bilinear upsampling and cross entropy, fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, reference
from dynroute.ops.registration import flop_formula, nhwc_empty, register


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    factor: int = 4,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    backend: str = "auto",
) -> Tensor:
    """Sum over labelled pixels of the cross entropy of bilinearly upsampled logits (align_corners=False).

    What is computed is `F.cross_entropy(upsampled[..., :H, :W], labels, weight, reduction="sum")`; neither the
    upsampled logits nor their gradient are ever written. The gradient is made in the forward pass, if logits need one;
    it cannot be differentiated again.

    On CUDA a wrong label cannot be told without waiting for the device: it makes the loss NaN, and the gradient at the
    logits' pixels around it.

    Args:
        logits: [N, K, h, w]; 16-bit types are computed in float32.
        labels: int64 [N, H, W], 0..K-1 or `ignore_index`; H <= factor * h and W <= factor * w, which crops the
            upsampled logits right and bottom.
        factor: 1..64.
        weight: [K] of logits' type, a factor for each class; None: 1.  It gets no gradient.
        ignore_index: the label of pixels that are left out.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        A scalar, in float32 for 16-bit logits: the sum of weighted losses, 0 where no pixel is labelled.

    Raises:
        RuntimeError: a shape, dtype or (but for CUDA) label is wrong, naming the argument, or the backend cannot be
            used.
        ValueError: an unknown backend.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    run = backends.operator("upsampled_cross_entropy", backend, logits)
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    loss, _ = run(logits, labels, factor, weight, ignore_index, with_gradient)
    return loss


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.with_gradient = inputs[-1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *rest: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 6
    if not ctx.with_gradient:
        raise RuntimeError("upsampled_cross_entropy: with_gradient: wanted True for a backward pass, got False")
    if torch.is_grad_enabled():
        raise RuntimeError("upsampled_cross_entropy: its gradient has none; backend='reference' gives it one")
    (gradient,) = ctx.saved_tensors
    return gradient * grad, *[None] * 5


autograd.define("upsampled_cross_entropy", _backward, _setup_context, maps=())


@flop_formula("upsampled_cross_entropy")
def _(logits, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0  # like torch's counter for its own elementwise and interpolation operators


def _register() -> None:
    @torch.library.register_fake("dynroute::upsampled_cross_entropy")
    def _(logits, labels, factor, weight, ignore_index, with_gradient):  # type: ignore[no-untyped-def]
        n, k, h, w = logits.shape
        return logits.new_empty(()), nhwc_empty(logits, (n if with_gradient else 0, k, h, w))


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "upsampled_cross_entropy")
backends.register(
    "upsampled_cross_entropy",
    backends.cuda_kernels("upsampled_cross_entropy"),
    backends.cpu_kernels("upsampled_cross_entropy"),
    backends.triton_kernels("upsampled_cross_entropy"),
    backends.Backend("reference", reference.upsampled_cross_entropy, backends.anywhere),
)
