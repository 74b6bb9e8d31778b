"""From alphas to what is computed: open lists, counts, slots, and who is there in the next layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, reference
from dynroute.ops.registration import register


class Routes(NamedTuple):
    """One layer's routes. Scales are 0..3, paths in the order up, keep, down."""

    alphas: Tensor  # [N, 4, 3]: 0 where a node is absent or has no such path
    open: Tensor  # int32 [4, N]: samples whose cell is computed, in order, then -1
    open_count: Tensor  # int32 [4]
    path_open: Tensor  # int32 [4, 3, N]: samples whose path is computed, in order, then -1
    path_count: Tensor  # int32 [4, 3]
    closed: Tensor  # bool [N, 4]: present, and passes X itself
    present: Tensor  # bool [N, 4]: nodes of the next layer
    slots: Tensor  # int32 [N, 4]: where the node's output lies; X's own slot if closed


def route(alphas: Tensor, present: Tensor, path_exists: Tensor, slots: Tensor, backend: str = "auto") -> Routes:
    """Routes one layer, each sample by itself.

    A present node is closed if its alphas sum to less than 1e-4; a path of an open node is closed where its alpha is at
    most 1e-4. A node of the next layer is present if up or down lead to it from a node that is present and not closed
    (even if that path's own alpha is 0), or keep from a present one.

    Args:
        alphas: float32 or float64 [N, 4, 3], paths in the order up, keep, down.
        present: bool [N, 4].
        path_exists: bool [4, 3].
        slots: int32 [N, 4], 0 or 1: which of its two slots holds a node's X.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend.
    """
    return Routes(*backends.operator("route", backend, alphas)(alphas, present, path_exists, slots))


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, present, path_exists, _ = inputs
    ctx.save_for_backward(present, path_exists)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *rest: Tensor | None) -> tuple:
    present, path_exists = ctx.saved_tensors
    return grad * (present[:, :, None] & path_exists), None, None, None


autograd.define("route", _backward, _setup_context, lowers=False)


def _register() -> None:
    @torch.library.register_fake("dynroute::route")
    def _(alphas, present, path_exists, slots):  # type: ignore[no-untyped-def]
        n = alphas.shape[0]

        def new(dtype: torch.dtype, *shape: Any) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=alphas.device)

        return (
            new(alphas.dtype, n, 4, 3),
            new(torch.int32, 4, n),
            new(torch.int32, 4),
            new(torch.int32, 4, 3, n),
            new(torch.int32, 4, 3),
            new(torch.bool, n, 4),
            new(torch.bool, n, 4),
            new(torch.int32, n, 4),
        )


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "route")
backends.register(
    "route",
    backends.cuda_kernels("route"),
    backends.cpu_kernels("route"),
    backends.triton_kernels("route"),
    backends.Backend("reference", reference.route, backends.anywhere),
)
