"""Stacked separable convolutions with BatchNorm in training, fused: of what lies between, only raw outputs are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, batchnorm, reference
from dynroute.ops.registration import as_weights, flop_formula, nhwc_empty, raw_type, register, taking_part


def sepconv_train(
    x: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    gamma: Sequence[Tensor],
    beta: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    open: Tensor | None = None,
    stride: int = 1,
    residual: bool = False,
    final_relu: bool = False,
    frozen: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: str = "",
    narrow: bool = False,
    backend: str = "auto",
) -> Tensor:
    """One to three times depthwise 3x3 -> pointwise -> BatchNorm, with ReLU between them [+ x] [-> ReLU].

    Kept for the backward: x and each stage's output before its BatchNorm; all else is made again.

    Args:
        x: [N, C, H, W], C a multiple of 8. On the CPU all is of its type, float32 or float64; on CUDA it is float32,
            float16 or bfloat16, and so are the maps that are returned, while all else is float32.
        depthwise: 1 to 3 weights, the first [C, 1, 3, 3], the others [Cout, 1, 3, 3]; padding 1.
        pointwise: as many weights, the first [Cout, C, 1, 1], the others [Cout, Cout, 1, 1]; Cout a multiple of 8.
        gamma, beta: as many [Cout], BatchNorm's weight and bias.
        running_mean, running_var: as many [Cout]; updated in place, as torch's BatchNorm does, unless `frozen`.
        open: bool [N]: samples that take part, in forward, backward and statistics; others give zeros.  None: all.
        stride: 1 or 2, of the first stage.
        residual: add x (stride 1 and Cout = C only).
        final_relu: end with a ReLU, after the residual.
        frozen: normalise with the running statistics, and leave them alone.
        momentum, eps: BatchNorm's.
        group: the processes whose BatchNorms see one batch with this one's, by torch.distributed's name of the group
            (`dist.group.WORLD.group_name`); all of them have to call. "": this process alone. Statistics are then of
            all; gradients of gamma and beta stay those of the own samples, to be averaged with the other weights'.
        narrow: keep the raw outputs in bfloat16 (of float32 maps, on the CPU only): half of that memory. What is made
            of them, the statistics too, is made of the rounded values; gradients pass the rounding unchanged.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        [N, Cout, H', W'] in channels_last, H' = ceil(H / stride).

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend or group.
    """
    run = backends.operator("sepconv_train", backend, x)
    lists = [list(values) for values in (depthwise, pointwise, gamma, beta, running_mean, running_var)]
    out, _, stats = run(x, *lists, open, stride, residual, final_relu, frozen, group, eps, narrow)
    if not frozen:
        batchnorm.update(running_mean, running_var, stats, momentum)
    return out


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, depthwise, pointwise, gamma, beta, _, _, open, *options, _, narrow = inputs
    ctx.options = [*options, narrow]
    _, raw, stats = output
    ctx.stages = len(depthwise)
    ctx.save_for_backward(x, open, raw, stats, *depthwise, *pointwise, *gamma, *beta)
    ctx.mark_non_differentiable(raw, stats)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *rest: Tensor | None) -> tuple:
    k, needs = ctx.stages, autograd.needs(ctx)
    if grad is None:
        return None, *[[None] * k] * 6, *[None] * 8
    x, open, raw, stats, *weights = ctx.saved_tensors
    depthwise, pointwise, gamma, beta = (weights[i * k : (i + 1) * k] for i in range(4))
    wanted = [needs[0], any(needs[1]), any(needs[2])]
    grad_x, flat = ctx.kernels.sepconv_train_backward(
        grad, x, depthwise, pointwise, gamma, beta, raw, stats, open, *ctx.options, wanted
    )
    taps, products = depthwise if wanted[1] else [], pointwise if wanted[2] else []
    grads = as_weights(flat, [*taps, *products, *gamma, *beta])
    none: list[Tensor | None] = [None] * k
    return (
        grad_x if wanted[0] else None,
        grads[:k] if wanted[1] else none,
        grads[-3 * k : -2 * k] if wanted[2] else none,
        grads[-2 * k : -k], grads[-k:], none, none, *[None] * 8,
    )  # fmt: skip


autograd.define("sepconv_train", _backward, _setup_context, maps=(0,))


def _macs(x: Tensor, pointwise: Sequence[Tensor], open: Tensor | None, stride: int) -> tuple[int, int]:
    """Of all depthwise and of all pointwise products."""
    n, _, h, w = x.shape
    pixels = taking_part(open, n) * ((h - 1) // stride + 1) * ((w - 1) // stride + 1)
    shapes = [weight.shape for weight in pointwise]
    return pixels * sum(9 * shape[1] for shape in shapes), pixels * sum(shape[0] * shape[1] for shape in shapes)


@flop_formula("sepconv_train")
def _(x, depthwise, pointwise, gamma, beta, mean, var, open, stride, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * sum(_macs(x, pointwise, open, stride))


@flop_formula("sepconv_train_backward")
def _(grad, x, depthwise, pointwise, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    open, stride, wanted = args[4], args[5], args[-1]
    taps, products = _macs(x, pointwise, open, stride)
    # depthwise outputs are made again for the products' weights
    return 2 * ((1 + wanted[2]) * products + (1 + wanted[1] + wanted[2]) * taps)


def _register() -> None:
    @torch.library.register_fake("dynroute::sepconv_train")
    def _(x, depthwise, pointwise, gamma, beta, running_mean, running_var, open, stride, *rest):  # type: ignore[no-untyped-def]
        n, _, h, w = x.shape
        stages, c = len(pointwise), pointwise[-1].shape[0]
        h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
        raw = nhwc_empty(x, (stages * n, c, h, w), raw_type(x, rest[-1]))
        return nhwc_empty(x, (n, c, h, w)), raw, gamma[0].new_empty((stages, 3, c))

    @torch.library.register_fake("dynroute::sepconv_train_backward")
    def _(grad, x, depthwise, pointwise, gamma, *rest):  # type: ignore[no-untyped-def]
        wanted, beta = rest[-1], rest[0]
        lists = (depthwise if wanted[1] else [], pointwise if wanted[2] else [], gamma, beta)
        size = sum(w.numel() for weights in lists for w in weights)
        n, c, h, w = x.shape
        return nhwc_empty(x, (n if wanted[0] else 0, c, h, w)), gamma[0].new_empty(size)


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "sepconv_train")
backends.register(
    "sepconv_train",
    backends.cuda_kernels("sepconv_train"),
    backends.cpu_kernels("sepconv_train"),
    backends.triton_kernels("sepconv_train"),
    backends.Backend("reference", reference.sepconv_train, backends.anywhere),
)
