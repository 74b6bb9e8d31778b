"""The gate of a node: how much each of its paths weighs, for each sample."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, gradients, reference
from dynroute.ops.registration import flop_formula, register, taking_part


def gate(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    activation: str = "tanh",
    small: bool = False,
    present: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """[Bilinear x1/4] -> 1x1 -> scale and shift -> ReLU -> mean over the map -> 1x1 + bias -> activation.

    Args:
        x: [N, C, H, W], C a multiple of 8; absent samples are not read.
        weight: [M, C, 1, 1], M = C / 2 in the published network.
        scale: [M].
        shift: [M].
        fc_weight: [g, M, 1, 1].
        fc_bias: [g].
        activation: "tanh" (which means max(0, tanh)), "sigmoid" or "softmax".
        small: work on the map at a quarter of its size, floor(H/4) x floor(W/4); H and W at least 4.
        present: bool [N], or None for all.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        alphas [N, g]; zeros for absent samples.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend or (reference) activation.
    """
    run = backends.operator("gate", backend, x)
    return run(x, weight, scale, shift, fc_weight, fc_bias, activation, small, present)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.activation, ctx.small, present = inputs
    ctx.save_for_backward(*tensors, present, output)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    x, weight, scale, shift, fc_weight, _, present, alphas = ctx.saved_tensors
    x = reference.only(present, x)
    small = reference.quarter(x) if ctx.small else x
    product = F.conv2d(small, weight)
    features = reference.affine(product, scale, shift).relu()
    pooled = features.mean((2, 3))

    grad = reference.only(present, grad)
    if ctx.activation == "tanh":
        grad = grad * (1 - alphas * alphas) * (alphas > 0)
    elif ctx.activation == "sigmoid":
        grad = grad * alphas * (1 - alphas)
    else:
        grad = alphas * (grad - (grad * alphas).sum(1, keepdim=True))
    grad_fc_weight = (grad.T @ pooled).view_as(fc_weight)
    grad_fc_bias = grad.sum(0)
    grad = (grad @ fc_weight.flatten(1) / (product.shape[2] * product.shape[3]))[:, :, None, None] * (features > 0)
    grad, grad_scale, grad_shift = gradients.affine(grad, product, scale)
    grad, grad_weight = gradients.conv(grad, small, weight)
    if ctx.small:
        grad = gradients.bilinear(grad, x.shape[2], x.shape[3], 0.25)
    return grad, grad_weight, grad_scale, grad_shift, grad_fc_weight, grad_fc_bias, None, None, None


autograd.define("gate", _backward, _setup_context)


@flop_formula("gate")
def _(x, weight, scale, shift, fc_weight, fc_bias, activation, small, present) -> int:  # type: ignore[no-untyped-def]
    n, c, h, w = x.shape
    pixels = (h // 4) * (w // 4) if small else h * w
    return 2 * taking_part(present, n) * weight.shape[0] * (pixels * c + fc_weight.shape[0])


def _register() -> None:
    @torch.library.register_fake("dynroute::gate")
    def _(x, weight, scale, shift, fc_weight, fc_bias, activation, small, present):  # type: ignore[no-untyped-def]
        return x.new_empty((x.shape[0], fc_weight.shape[0]))


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "gate")
backends.register(
    "gate",
    backends.cuda_kernels("gate"),
    backends.cpu_kernels("gate"),
    backends.triton_kernels("gate"),
    backends.Backend("reference", reference.gate, backends.anywhere),
)
