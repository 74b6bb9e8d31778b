"""A path between scales in training, fused: [ReLU ->] 1x1 -> BatchNorm -> ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, batchnorm, reference
from dynroute.ops.registration import as_weights, flop_formula, nhwc_empty, raw_type, register, taking_part


def transform_train(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    open: Tensor | None = None,
    stride: int = 1,
    relu_input: bool = True,
    frozen: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: str = "",
    narrow: bool = False,
    backend: str = "auto",
) -> Tensor:
    """[ReLU ->] 1x1 convolution with a stride -> BatchNorm -> ReLU.

    Kept for the backward: x and the product before its BatchNorm.

    Args:
        x: [N, C, H, W], C a multiple of 8. On the CPU all is of its type, float32 or float64; on CUDA it is float32,
            float16 or bfloat16, and so are the maps that are returned, while all else is float32.
        weight: [Cout, C, 1, 1], Cout a multiple of 4, on CUDA of 8.
        gamma, beta: [Cout], BatchNorm's weight and bias.
        running_mean, running_var: [Cout]; updated in place, as torch's BatchNorm does, unless `frozen`.
        open: bool [N]: samples that take part, in forward, backward and statistics; others give zeros.  None: all.
        stride: 1 or 2; with 2 only every second pixel and row is read.
        relu_input: read ReLU(x).
        frozen: normalise with the running statistics, and leave them alone.
        momentum, eps: BatchNorm's.
        group: the processes whose BatchNorms see one batch with this one's, by torch.distributed's name of the group
            (`dist.group.WORLD.group_name`); all of them have to call. "": this process alone. Statistics are then of
            all; gradients of gamma and beta stay those of the own samples, to be averaged with the other weights'.
        narrow: keep the raw outputs in bfloat16 (of float32 maps, on the CPU only): half of that memory. What is made
            of them, the statistics too, is made of the rounded values; gradients pass the rounding unchanged.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        [N, Cout, ceil(H / stride), ceil(W / stride)] in channels_last.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend or group.
    """
    run = backends.operator("transform_train", backend, x)
    norm = gamma, beta, running_mean, running_var
    out, _, stats = run(x, weight, *norm, open, stride, relu_input, frozen, group, eps, narrow)
    if not frozen:
        batchnorm.update([running_mean], [running_var], stats, momentum)
    return out


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, gamma, beta, _, _, open, *options, _, narrow = inputs
    ctx.options = [*options, narrow]
    ctx.save_for_backward(x, weight, gamma, beta, *output[1:], open)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *rest: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 13
    *saved, open = ctx.saved_tensors
    wanted = [*autograd.needs(ctx)[:2]]
    grad_x, flat = ctx.kernels.transform_train_backward(grad, *saved, open, *ctx.options, wanted)
    _, weight, gamma, beta, *_ = saved
    *grad_weight, grad_gamma, grad_beta = as_weights(flat, [weight, gamma, beta] if wanted[1] else [gamma, beta])
    return (
        grad_x if wanted[0] else None, grad_weight[0] if wanted[1] else None, grad_gamma, grad_beta, *[None] * 9,
    )  # fmt: skip


autograd.define("transform_train", _backward, _setup_context, maps=(0,))


def _flops(x: Tensor, weight: Tensor, open: Tensor | None, stride: int) -> int:
    n, c, h, w = x.shape
    return 2 * taking_part(open, n) * ((h - 1) // stride + 1) * ((w - 1) // stride + 1) * c * weight.shape[0]


@flop_formula("transform_train")
def _(x, weight, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return _flops(x, weight, args[4], args[5])


@flop_formula("transform_train_backward")
def _(grad, x, weight, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return sum(args[-1]) * _flops(x, weight, args[4], args[5])


def _register() -> None:
    @torch.library.register_fake("dynroute::transform_train")
    def _(x, weight, gamma, beta, running_mean, running_var, open, stride, *rest):  # type: ignore[no-untyped-def]
        n, _, h, w = x.shape
        shape = (n, weight.shape[0], (h - 1) // stride + 1, (w - 1) // stride + 1)
        return (
            nhwc_empty(x, shape),
            nhwc_empty(x, shape, raw_type(x, rest[-1])),
            weight.new_empty((1, 3, weight.shape[0])),
        )

    @torch.library.register_fake("dynroute::transform_train_backward")
    def _(grad, x, weight, *rest):  # type: ignore[no-untyped-def]
        wanted = rest[-1]
        n, c, h, w = x.shape
        flat = weight.new_empty((weight.numel() if wanted[1] else 0) + 2 * weight.shape[0])
        return nhwc_empty(x, (n if wanted[0] else 0, c, h, w)), flat


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "transform_train")
backends.register(
    "transform_train",
    backends.cuda_kernels("transform_train"),
    backends.cpu_kernels("transform_train"),
    backends.triton_kernels("transform_train"),
    backends.Backend("reference", reference.transform_train, backends.anywhere),
)
