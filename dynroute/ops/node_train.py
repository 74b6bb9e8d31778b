"""A node of the space in training: its cell, and what its paths make of it, weighted by the alphas; fused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.ops import autograd, backends, batchnorm, reference
from dynroute.ops.registration import as_weights, flop_formula, nhwc_empty, raw_type, register, taking_part
from dynroute.space.routing import is_closed, is_path_open
from dynroute.space.wiring import DOWN, UP


class NodeOutput(NamedTuple):
    """What a node hands on; None where it has no such path."""

    keep: Tensor
    """[N, C, H, W]"""
    up: Tensor | None
    """[N, C/2, H, W], before its bilinear x2"""
    down: Tensor | None
    """[N, 2C, ceil(H/2), ceil(W/2)]"""


def node_train(
    x: Tensor,
    alphas: Tensor,
    depthwise: Sequence[Tensor],
    pointwise: Sequence[Tensor],
    up: Tensor | None,
    down: Tensor | None,
    gamma: Sequence[Tensor],
    beta: Sequence[Tensor],
    running_mean: Sequence[Tensor],
    running_var: Sequence[Tensor],
    factor: Tensor | None = None,
    bridge: float = 0.0,
    skip: bool = False,
    frozen: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    group: str = "",
    narrow: bool = False,
    backend: str = "auto",
) -> NodeOutput:
    """H = ReLU(x + factor * sepconv(x)); keep = alpha * H, up and down = alpha * ReLU(BatchNorm(1x1(H))).

    SPEC, "Node", in training: the sepconv is 1 to 3 times depthwise 3x3 -> pointwise -> BatchNorm with ReLU between
    them; down's 1x1 has stride 2. A sample whose alphas sum to less than 1e-4 is closed: its keep is x. With a bridge,
    keep = alpha * H + max(0, 1 - sum / bridge) * x instead.

    Kept for the backward: x, and the output of each product before its BatchNorm. H, the depthwise outputs and all that
    lies behind a BatchNorm are made again.

    Args:
        x: [N, C, H, W], C a multiple of 8. On the CPU all is of its type, float32 or float64; on CUDA it is float32,
            float16 or bfloat16, and so are the maps that are returned, while all else is float32.
        alphas: [N, 3], columns up, keep, down; 0 where there is no path.
        depthwise: 1 to 3 weights [C, 1, 3, 3].
        pointwise: as many [C, C, 1, 1].
        up: [C/2, C, 1, 1] or None; down: [2C, C, 1, 1] or None (any channels in a multiple of 4, on CUDA of 8).
        gamma, beta, running_mean, running_var: of each BatchNorm: the sepconv's, then up's, then down's.  The running
            statistics are updated in place, as torch's BatchNorm does, unless `frozen`.
        factor: [N], what the sepconv is scaled with for each sample (scheduled drop path); no gradient.
        bridge: the sum of alphas below which x begins to pass; 0: none.
        skip: closed samples are left out: of forward, backward and statistics; so are, for up and down, samples
            whose alpha there is at most 1e-4. False: all are computed.
        frozen: normalise with the running statistics, and leave them alone.
        momentum, eps: BatchNorm's.
        group: the processes whose BatchNorms see one batch with this one's, by torch.distributed's name of the group
            (`dist.group.WORLD.group_name`); all of them have to call. "": this process alone. Statistics are then of
            all; gradients of gamma and beta stay those of the own samples, to be averaged with the other weights'.
        narrow: keep the raw outputs in bfloat16 (of float32 maps, on the CPU only): half of that memory. What is made
            of them, the statistics too, is made of the rounded values; gradients pass the rounding unchanged.
        backend: "auto", or a name of `dynroute.ops.backends`.

    Raises:
        RuntimeError: a shape or dtype is wrong (naming the argument), or the backend cannot be used.
        ValueError: an unknown backend or group.
    """
    run = backends.operator("node_train", backend, x)
    weights = [list(values) for values in (gamma, beta, running_mean, running_var)]
    keep, up_out, down_out, *_, stats = run(
        x, alphas, list(depthwise), list(pointwise), up, down, *weights,
        factor, bridge, skip, frozen, group, eps, narrow,
    )  # fmt: skip
    if not frozen:
        batchnorm.update(running_mean, running_var, stats, momentum)
    return NodeOutput(keep, None if up is None else up_out, None if down is None else down_out)


def _setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, alphas, depthwise, pointwise, up, down, gamma, beta, _, _, factor, *options, _, narrow = inputs
    ctx.options = [*options, narrow]
    ctx.stages, ctx.norms = len(depthwise), len(gamma)
    made = output[3:]
    ctx.save_for_backward(x, alphas, up, down, factor, *made, *depthwise, *pointwise, *gamma, *beta)
    ctx.mark_non_differentiable(*made)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_keep: Tensor | None, grad_up: Tensor | None, grad_down: Tensor | None, *_: Any) -> tuple:
    x, alphas, up, down, factor, raw, up_raw, down_raw, stats, *weights = ctx.saved_tensors
    k, norms, needs = ctx.stages, ctx.norms, autograd.needs(ctx)
    none: list[list[None]] = [[None] * k, [None] * norms]
    if grad_keep is None and grad_up is None and grad_down is None:
        return None, None, none[0], none[0], None, None, *[none[1]] * 4, *[None] * 7
    depthwise, pointwise, gamma, beta = (
        weights[:k], weights[k : 2 * k], weights[2 * k : 2 * k + norms], weights[2 * k + norms :]
    )  # fmt: skip
    wanted = [needs[0], any(needs[2]) or any(needs[3]) or needs[4] or needs[5]]
    grad_x, grad_alphas, flat = ctx.kernels.node_train_backward(
        grad_keep, grad_up if up is not None else None, grad_down if down is not None else None, x, alphas,
        depthwise, pointwise, up, down, gamma, beta, raw, up_raw, down_raw, stats, factor, *ctx.options, wanted,
    )  # fmt: skip
    paths = [w for w in (up, down) if w is not None]
    convolutions = [*depthwise, *pointwise, *paths] if wanted[1] else []
    grads = as_weights(flat, [*convolutions, *gamma, *beta])
    of_paths = iter(grads[2 * k : 2 * k + len(paths)] if wanted[1] else [None] * len(paths))
    return (
        grad_x if wanted[0] else None,
        grad_alphas if needs[1] else None,
        grads[:k] if wanted[1] else none[0],
        grads[k : 2 * k] if wanted[1] else none[0],
        None if up is None else next(of_paths),
        None if down is None else next(of_paths),
        grads[-2 * norms : -norms],
        grads[-norms:],
        none[1], none[1], *[None] * 7,
    )  # fmt: skip


autograd.define("node_train", _backward, _setup_context, maps=(0,))


def _macs(
    x: Tensor, alphas: Tensor, depthwise: Sequence[Tensor], up: Tensor | None, down: Tensor | None, skip: bool
) -> tuple[int, int, int]:
    """Of all depthwise products, of the cell's pointwise ones, of the paths'."""
    n, c, h, w = x.shape
    opened = ~is_closed(alphas) if skip else None

    def on_path(path: int) -> int:
        return taking_part(None if opened is None else opened & is_path_open(alphas[:, path]), n)

    pixels, stages, paths = taking_part(opened, n) * h * w, len(depthwise), 0
    if up is not None:
        paths += on_path(UP) * h * w * up.shape[0] * c
    if down is not None:
        paths += on_path(DOWN) * ((h + 1) // 2) * ((w + 1) // 2) * down.shape[0] * c
    return pixels * 9 * c * stages, pixels * c * c * stages, paths


@flop_formula("node_train")
def _(x, alphas, depthwise, pointwise, up, down, *args) -> int:  # type: ignore[no-untyped-def]
    return 2 * sum(_macs(x, alphas, depthwise, up, down, args[6]))


@flop_formula("node_train_backward")
def _(grad_keep, grad_up, grad_down, x, alphas, depthwise, pointwise, up, down, *args) -> int:  # type: ignore[no-untyped-def]
    _, wants_weights = args[-1]
    up, down = up if grad_up is not None else None, down if grad_down is not None else None
    taps, products, paths = _macs(x, alphas, depthwise, up, down, args[8])
    # a first stage's input gradient is made where x's or its depthwise weights' is wanted
    return 2 * ((1 + wants_weights) * (products + paths) + (1 + 2 * wants_weights) * taps)


def _register() -> None:
    @torch.library.register_fake("dynroute::node_train")
    def _(x, alphas, depthwise, pointwise, up, down, gamma, *rest):  # type: ignore[no-untyped-def]
        n, c, h, w = x.shape

        kept = raw_type(x, rest[-1])

        def path(weight: Tensor | None, h: int, w: int, dtype: torch.dtype) -> Tensor:
            return x.new_empty(0, dtype=dtype) if weight is None else nhwc_empty(x, (n, weight.shape[0], h, w), dtype)

        small = (h + 1) // 2, (w + 1) // 2
        outputs = path(up, h, w, x.dtype), path(down, *small, x.dtype)
        raws = nhwc_empty(x, (len(pointwise) * n, c, h, w), kept), path(up, h, w, kept), path(down, *small, kept)
        return nhwc_empty(x, (n, c, h, w)), *outputs, *raws, gamma[0].new_empty(3 * sum(g.shape[0] for g in gamma))

    @torch.library.register_fake("dynroute::node_train_backward")
    def _(grad_keep, grad_up, grad_down, x, alphas, depthwise, pointwise, up, down, gamma, *rest):  # type: ignore[no-untyped-def]
        wants_x, wants_weights = rest[-1]
        convolutions = [*depthwise, *pointwise, *(w for w in (up, down) if w is not None)] if wants_weights else []
        size = sum(w.numel() for w in convolutions) + 2 * sum(g.shape[0] for g in gamma)
        n, c, h, w = x.shape
        return nhwc_empty(x, (n if wants_x else 0, c, h, w)), torch.empty_like(alphas), gamma[0].new_empty(size)


if library.why_not_loaded() is None:
    _register()
    register("dynroute", "node_train")
backends.register(
    "node_train",
    backends.cuda_kernels("node_train"),
    backends.cpu_kernels("node_train"),
    backends.triton_kernels("node_train"),
    backends.Backend("reference", reference.node_train, backends.anywhere),
)
