"""The gate of a node in training: BatchNorm with the batch's statistics, and a backward that stores no map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, batchnorm, reference
from dynroute.ops.registration import as_weights, flop_formula, nhwc_empty, raw_type, register
from dynroute.space.wiring import KEEP


def gate_train(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    activation: str = "tanh",
    columns: Sequence[int] = (KEEP,),
    small: bool = False,
    frozen: bool = False,
    group: str = "",
    momentum: float = 0.1,
    eps: float = 1e-5,
    narrow: bool = False,
    backend: str = "auto",
) -> Tensor:
    """[Bilinear x1/4] -> 1x1 -> BatchNorm -> ReLU -> mean over the map -> 1x1 + bias -> activation.

    Kept for the backward: x, the product before its BatchNorm, and three sums of each sample and channel.

    Args:
        x: [N, C, H, W], C a multiple of 8. On the CPU all is of its type, float32 or float64; on CUDA it is float32,
            float16 or bfloat16, and so are the maps that are returned, while all else is float32.
        weight: [M, C, 1, 1], M a multiple of 4 (CUDA: 8); C / 2 in the published network.
        gamma, beta: [M], BatchNorm's weight and bias.
        running_mean, running_var: [M]; updated in place, as torch's BatchNorm does, unless `frozen`.
        fc_weight: [g, M, 1, 1], g from 1 to 3.
        fc_bias: [g].
        activation: "tanh" (which means max(0, tanh)), "sigmoid" or "softmax" (over the g logits).
        columns: g different ones of 0, 1, 2: where each logit's alpha goes.
        small: work on the map at a quarter of its size, floor(H/4) x floor(W/4); H and W at least 4.
        frozen: normalise with the running statistics, and leave them alone.
        group: the processes whose BatchNorms see one batch with this one's, as in `transform_train`.
        momentum, eps: BatchNorm's.
        narrow: keep the product in bfloat16, as in `transform_train`.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        alphas [N, 3] of the weights' type, columns in the order up, keep, down; zeros in those that `columns` does not
        name.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend, group or (reference) activation.
    """
    run = backends.operator("gate_train", backend, x)
    alphas, _, stats, _ = run(
        x, weight, gamma, beta, running_mean, running_var, fc_weight, fc_bias, activation, list(columns), small,
        frozen, group, eps, narrow,
    )  # fmt: skip
    if not frozen:
        batchnorm.update([running_mean], [running_var], stats, momentum)
    return alphas


def _side(side: Any, small: bool) -> Any:
    return side // 4 if small else side


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, weight, gamma, beta, _, _, fc_weight, _, *options, _, narrow = inputs
    ctx.options = [*options, narrow]
    ctx.save_for_backward(x, weight, gamma, beta, fc_weight, *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, *rest: Tensor | None) -> tuple:
    if grad is None:
        return (None,) * 15
    wanted = [*autograd.needs(ctx)[:2]]
    grad_x, flat = ctx.kernels.gate_train_backward(grad, *ctx.saved_tensors, *ctx.options, wanted)
    _, weight, gamma, beta, fc_weight, *_ = ctx.saved_tensors
    bias = fc_weight[:, 0, 0, 0]
    *of_weight, of_gamma, of_beta, of_fc, of_bias = as_weights(
        flat, [*([weight] if wanted[1] else []), gamma, beta, fc_weight, bias]
    )
    return (
        grad_x if wanted[0] else None, of_weight[0] if wanted[1] else None, of_gamma, of_beta, None, None, of_fc,
        of_bias, *[None] * 7,
    )  # fmt: skip


autograd.define("gate_train", _backward, _setup_context, maps=(0,))


def _macs(x: Tensor, weight: Tensor, fc_weight: Tensor, small: bool) -> tuple[int, int]:
    """Of the product over the map, and of the one behind the mean."""
    (n, c, h, w), m = x.shape, weight.shape[0]
    return n * _side(h, small) * _side(w, small) * c * m, n * m * fc_weight.shape[0]


@flop_formula("gate_train")
def _(x, weight, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 2 * sum(_macs(x, weight, args[4], args[8]))


@flop_formula("gate_train_backward")
def _(grad, x, weight, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    of_map, of_fc = _macs(x, weight, args[2], args[9])
    return 2 * (sum(args[-1]) * of_map + 2 * of_fc)


def _register() -> None:
    @torch.library.register_fake("dynroute::gate_train")
    def _(x, weight, gamma, beta, mean, var, fc_weight, fc_bias, activation, columns, small, *rest):  # type: ignore[no-untyped-def]
        n, _, h, w = x.shape
        m = weight.shape[0]
        raw = nhwc_empty(x, (n, m, _side(h, small), _side(w, small)), raw_type(x, rest[-1]))
        return weight.new_empty((n, 3)), raw, weight.new_empty((1, 3, m)), weight.new_empty((n, 3, m))

    @torch.library.register_fake("dynroute::gate_train_backward")
    def _(grad, x, weight, gamma, beta, fc_weight, *rest):  # type: ignore[no-untyped-def]
        wanted = rest[-1]
        n, c, h, w = x.shape
        small = 2 * weight.shape[0] + fc_weight.numel() + fc_weight.shape[0]
        flat = weight.new_empty(small + (weight.numel() if wanted[1] else 0))
        return nhwc_empty(x, (n if wanted[0] else 0, c, h, w)), flat


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "gate_train")
backends.register(
    "gate_train",
    backends.cuda_kernels("gate_train"),
    backends.cpu_kernels("gate_train"),
    backends.triton_kernels("gate_train"),
    backends.Backend("reference", reference.gate_train, backends.anywhere),
)
