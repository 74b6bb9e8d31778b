"""The input of a node: the weighted sum of what its neighbours of the layer before pass on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, reference
from dynroute.ops.registration import flop_formula, nhwc_empty, register


def aggregate(
    down: Tensor | None,
    keep: Tensor | None,
    up: Tensor | None,
    alphas: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """alpha_down * down + alpha_keep * keep + alpha_up * bilinear_x2(up), summed in this order.

    Args:
        down: [N, C, H, W] or None, C a multiple of 4.
        keep: [N, C, H, W] or None.
        up: [N, C, H/2, W/2] or None, H and W even; read through a bilinear x2, align_corners=False.
        alphas: [N, 3], columns in the order up, keep, down; a source whose alpha is 0 is not read, and neither it nor
            its alpha gets a gradient.  None: the sources come weighted, each counts as it is.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        [N, C, H, W] in channels_last.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend, or no source.
    """
    first = next((source for source in (down, keep, up) if source is not None), None)
    if first is None:
        raise ValueError("aggregate: down, keep, up: wanted at least one source, got none")
    return backends.operator("aggregate", backend, first)(down, keep, up, alphas)


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    *sources, alphas = inputs
    if not autograd.needs(ctx)[3]:
        sources = [None] * 3  # read for the alphas' gradients alone
    ctx.save_for_backward(*sources, alphas)


def _backward(ctx: Any, grad: Tensor) -> tuple:
    *sources, alphas = ctx.saved_tensors
    wanted = list(autograd.needs(ctx))
    if alphas is not None:
        grads = ctx.kernels.aggregate_backward(grad, *sources, alphas, wanted)
        return tuple(of if wants else None for of, wants in zip(grads, wanted))
    grad_up = None
    if wanted[2]:
        only_up = [False, False, True, False]
        grad_up = ctx.kernels.aggregate_backward(grad, *sources, None, only_up)[2]
    return grad if wanted[0] else None, grad if wanted[1] else None, grad_up, None


autograd.define("aggregate", _backward, _setup_context)


@flop_formula("aggregate")
def _(down, keep, up, alphas, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0  # like torch's counter for its own elementwise and interpolation operators


@flop_formula("aggregate_backward")
def _(grad, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
    return 0


def _register() -> None:
    @torch.library.register_fake("dynroute::aggregate")
    def _(down, keep, up, alphas):  # type: ignore[no-untyped-def]
        first = next(source for source in (down, keep, up) if source is not None)
        n, c, h, w = first.shape
        factor = 2 if down is None and keep is None else 1
        return nhwc_empty(first, (n, c, h * factor, w * factor))

    @torch.library.register_fake("dynroute::aggregate_backward")
    def _(grad, down, keep, up, alphas, wanted):  # type: ignore[no-untyped-def]
        n, c, h, w = grad.shape
        maps = [
            nhwc_empty(grad, (n if of_map else 0, c, h // factor, w // factor))
            for of_map, factor in zip(wanted, (1, 1, 2))
        ]
        return *maps, grad.new_empty((n if wanted[3] else 0, 3))


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "aggregate")
backends.register(
    "aggregate",
    backends.cuda_kernels("aggregate"),
    backends.cpu_kernels("aggregate"),
    backends.triton_kernels("aggregate"),
    backends.Backend("reference", reference.aggregate, backends.anywhere),
)
