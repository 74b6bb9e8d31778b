"""The input of a node: the weighted sum of what its neighbours of the layer before pass on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from dynroute.native import library
from dynroute.ops import backends, gradients, reference
from dynroute.ops.registration import nhwc_empty
from dynroute.space.wiring import DOWN, KEEP, UP


def aggregate(
    down: Tensor | None, keep: Tensor | None, up: Tensor | None, alphas: Tensor, backend: str = "auto"
) -> Tensor:
    """alpha_down * down + alpha_keep * keep + alpha_up * bilinear_x2(up), summed in this order.

    Args:
        down: [N, C, H, W] or None, C a multiple of 4.
        keep: [N, C, H, W] or None.
        up: [N, C, H/2, W/2] or None, H and W even; read through a bilinear x2, align_corners=False.
        alphas: [N, 3], columns in the order up, keep, down; a source whose alpha is 0 is not read.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Returns:
        [N, C, H, W] in channels_last.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend, or (reference) no source.
    """
    return backends.operator("aggregate", backend, alphas)(down, keep, up, alphas)


def _register() -> None:
    @torch.library.register_fake("dynroute::aggregate")
    def _(down, keep, up, alphas):  # type: ignore[no-untyped-def]
        first = next(source for source in (down, keep, up) if source is not None)
        n, c, h, w = first.shape
        factor = 2 if down is None and keep is None else 1
        return nhwc_empty(alphas, (n, c, h * factor, w * factor))

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        down, keep, up, alphas = ctx.saved_tensors
        grads: list[Tensor | None] = [None, None, None]
        grad_alphas = [torch.zeros_like(alphas[:, 0])] * 3
        for path, source in ((UP, up), (KEEP, keep), (DOWN, down)):
            if source is None:
                continue
            alpha = alphas[:, path]
            grad_source = gradients.bilinear(grad, source.shape[2], source.shape[3], 2.0) if path == UP else grad
            grads[2 - path] = alpha.view(-1, 1, 1, 1) * grad_source
            grad_alphas[path] = (grad_source * reference.only(alpha != 0, source)).sum((1, 2, 3))
        return *grads, torch.stack(grad_alphas, 1)

    torch.library.register_autograd("dynroute::aggregate", backward, setup_context=setup_context)

    @register_flop_formula(torch.ops.dynroute.aggregate)
    def _(down, keep, up, alphas, *args, **kwargs) -> int:  # type: ignore[no-untyped-def]
        return 0  # like torch's counter for its own elementwise and interpolation operators


if library.why_not_loaded() is None:
    _register()
backends.register(
    "aggregate",
    backends.cpu_kernels("aggregate"),
    backends.Backend("reference", reference.aggregate, backends.anywhere),
)
