"""`sepconv_train` and `transform_train` in Triton: chains of [depthwise ->] product -> BatchNorm, ReLU between them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dynroute.ops.triton.launch import by_taps, check, nhwc, strided
from dynroute.ops.triton.train import norm
from dynroute.ops.triton.train.backward import depthwise_backward, outer, product_backward, sums
from dynroute.ops.triton.train.forward import apply, forward
from dynroute.ops.triton.train.norm import Tiles
from dynroute.ops.triton.train.samples import Samples, masked
from dynroute.ops.triton.train.source import Gradient, Norm, Source


class Chain(NamedTuple):
    """The stages of an operator. kind: how the first one reads x; raw: [stages * N, C, H, W]."""

    x: Tensor
    kind: str
    depthwise: list[Tensor]
    pointwise: list[Tensor]
    norms: list[Norm]
    raw: Tensor
    samples: Samples
    stride: int

    def raw_of(self, k: int) -> Tensor:
        n = self.samples.n
        return self.raw[k * n : (k + 1) * n]

    def source(self, k: int) -> Source:
        if k == 0:
            return Source(self.kind, self.x)
        return Source("normed", self.x, self.raw_of(k - 1), self.norms[k - 1])

    def taps(self, k: int) -> Tensor | None:
        """[9, C], as kernels read them."""
        return by_taps(self.depthwise[k]) if self.depthwise else None


class Flat:
    """Gradients of weights, one after the other in one tensor, which is zeros: nothing may be written of some."""

    def __init__(self, like: Tensor, *lists: list[Tensor]) -> None:
        self.all = like.new_zeros(sum(weight.numel() for weights in lists for weight in weights))
        self._at = 0

    def take(self, weights: list[Tensor]) -> list[Tensor]:
        """Those of the next ones, flat."""
        found = []
        for weight in weights:
            found.append(self.all[self._at : self._at + weight.numel()])
            self._at += weight.numel()
        return found


def check_chain(
    op: str, x: Tensor, depthwise: list[Tensor], pointwise: list[Tensor], stride: int, narrow: bool
) -> None:
    """Raises RuntimeError, naming what is wrong."""
    check(1 <= len(pointwise) <= 3, op, "pointwise", "1 to 3 weights", len(pointwise))
    check(stride in (1, 2), op, "stride", "1 or 2", stride)
    check(not narrow, op, "narrow", "False: maps are of 16 bits themselves here", narrow)
    c = x.shape[1]
    for k, weight in enumerate(pointwise):
        if depthwise:
            check(depthwise[k].shape == (c, 1, 3, 3), op, "depthwise", f"[{c}, 1, 3, 3]", list(depthwise[k].shape))
        check(weight.shape[1:] == (c, 1, 1), op, "pointwise", f"[Cout, {c}, 1, 1]", list(weight.shape))
        c = weight.shape[0]


def forward_stages(
    chain: Chain, running_mean: list[Tensor], running_var: list[Tensor], frozen: bool, group: str, eps: float
) -> None:
    """Raw outputs and statistics of each stage."""
    for k, weight in enumerate(chain.pointwise):
        stride = chain.stride if k == 0 else 1
        tiles = forward(chain.source(k), chain.taps(k), weight, chain.raw_of(k), chain.samples, stride, not frozen)
        norm.statistics(tiles, chain.samples, running_mean[k], running_var[k], chain.norms[k].stats, group, eps)


class Wanted(NamedTuple):
    """Where a chain's gradients go; None or empty: not wanted."""

    x: bool
    depthwise: list[Tensor]
    pointwise: list[Tensor]
    gamma: list[Tensor]
    beta: list[Tensor]


def backward_stages(
    chain: Chain, grad: Tensor, found: Tiles, wanted: Wanted, frozen: bool, group: str, factor: Tensor | None = None,
    added: Tensor | None = None, more: tuple[Tensor, Tensor] | None = None, grad_x: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """From the gradient behind the last BatchNorm, [N] factor its weights, and its sums, to all others; returns x's.

    added, more: see `depthwise_backward`; grad_x: where x's is written, if it is there already.
    """
    for k in range(len(chain.pointwise) - 1, -1, -1):
        source, taps, stride = chain.source(k), chain.taps(k), chain.stride if k == 0 else 1
        means = norm.backward(found, chain.samples, chain.norms[k], wanted.gamma[k], wanted.beta[k], frozen, group)
        gradient = Gradient(grad, chain.raw_of(k), chain.norms[k], means, factor)
        if wanted.pointwise:
            outer(gradient, source, taps, chain.samples, stride, wanted.pointwise[k])
        if k == 0 and not wanted.x and not wanted.depthwise:
            return None
        height, width, channels = source.size
        if taps is None:
            x = chain.x if source.kind == "relu" else None
            return product_backward(gradient, chain.pointwise[k], chain.samples, height, width, stride, source.kind, x)
        of_product = product_backward(gradient, chain.pointwise[k], chain.samples, *chain.raw.shape[2:])
        if k > 0 or grad_x is None:
            is_wanted = k > 0 or wanted.x
            shape = (chain.samples.n, channels, height, width)
            to = chain.samples.new_map(chain.x, shape) if is_wanted else None
        else:
            to = grad_x
        made = depthwise_backward(
            of_product, source, taps, chain.samples, stride, to, wanted.depthwise[k] if wanted.depthwise else None,
            added if k == 0 else None, more if k == 0 else None,
        )  # fmt: skip
        if made is None:
            return to
        assert to is not None
        grad, found, factor = to, made, None
    return None


def _forward(
    op: str, x: Tensor, kind: str, depthwise: list[Tensor], pointwise: list[Tensor], gamma: list[Tensor],
    beta: list[Tensor], running_mean: list[Tensor], running_var: list[Tensor], open: Tensor | None, stride: int,
    residual: bool, final_relu: bool, frozen: bool, group: str, eps: float, narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x = nhwc(x)
    check_chain(op, x, depthwise, pointwise, stride, narrow)
    n, _, h, w = x.shape
    c, stages, samples = pointwise[-1].shape[0], len(pointwise), masked(open, n)
    shape = (n, c, strided(h, stride), strided(w, stride))
    check(not residual or x.shape == shape, op, "residual", f"an output like x, {list(x.shape)}", list(shape))
    out, raw = samples.new_map(x, shape), samples.new_map(x, (stages * n, *shape[1:]))
    stats = gamma[0].new_empty((stages, 3, c))
    norms = [Norm(gamma[k], beta[k], stats[k]) for k in range(stages)]
    chain = Chain(x, kind, depthwise, pointwise, norms, raw, samples, stride)
    forward_stages(chain, running_mean, running_var, frozen, group, eps)
    apply(chain.raw_of(stages - 1), norms[-1], out, samples, final_relu, x if residual else None)
    return out, raw, stats


def _backward(
    grad: Tensor, x: Tensor, kind: str, depthwise: list[Tensor], pointwise: list[Tensor], gamma: list[Tensor],
    beta: list[Tensor], raw: Tensor, stats: Tensor, open: Tensor | None, stride: int, residual: bool, final_relu: bool,
    frozen: bool, group: str, wanted: list[bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, grad, n, stages = nhwc(x), nhwc(grad), x.shape[0], len(pointwise)
    norms = [Norm(gamma[k], beta[k], stats[k]) for k in range(stages)]
    chain = Chain(x, kind, depthwise, pointwise, norms, raw, masked(open, n), stride)
    of_taps, of_products = depthwise if wanted[1] else [], pointwise if wanted[2] else []
    flat = Flat(gamma[0], of_taps, of_products, gamma, beta)
    to = Wanted(wanted[0], flat.take(of_taps), flat.take(of_products), flat.take(gamma), flat.take(beta))
    behind, tiles, _ = sums(
        grad, chain.raw_of(stages - 1), norms[-1], chain.samples, final_relu, x if residual else None
    )
    grad_x = backward_stages(chain, behind, tiles, to, frozen, group, added=behind if residual else None)
    if grad_x is None:
        grad_x = x.new_empty((0, *x.shape[1:]))
    return grad_x, flat.all


@torch.library.triton_op("dynroute_triton::sepconv_train", mutates_args={})
def sepconv_train(
    x: Tensor,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    gamma: list[Tensor],
    beta: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    open: Tensor | None,
    stride: int,
    residual: bool,
    final_relu: bool,
    frozen: bool,
    group: str,
    eps: float,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(
        "sepconv_train", x, "x", depthwise, pointwise, gamma, beta, running_mean, running_var, open, stride, residual,
        final_relu, frozen, group, eps, narrow,
    )  # fmt: skip


@torch.library.triton_op("dynroute_triton::sepconv_train_backward", mutates_args={})
def sepconv_train_backward(
    grad: Tensor,
    x: Tensor,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    gamma: list[Tensor],
    beta: list[Tensor],
    raw: Tensor,
    stats: Tensor,
    open: Tensor | None,
    stride: int,
    residual: bool,
    final_relu: bool,
    frozen: bool,
    group: str,
    narrow: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    return _backward(
        grad, x, "x", depthwise, pointwise, gamma, beta, raw, stats, open, stride, residual, final_relu, frozen, group,
        wanted,
    )  # fmt: skip


@torch.library.triton_op("dynroute_triton::transform_train", mutates_args={})
def transform_train(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    open: Tensor | None,
    stride: int,
    relu_input: bool,
    frozen: bool,
    group: str,
    eps: float,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(
        "transform_train", x, "relu" if relu_input else "x", [], [weight], [gamma], [beta], [running_mean],
        [running_var], open, stride, False, True, frozen, group, eps, narrow,
    )  # fmt: skip


@torch.library.triton_op("dynroute_triton::transform_train_backward", mutates_args={})
def transform_train_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    raw: Tensor,
    stats: Tensor,
    open: Tensor | None,
    stride: int,
    relu_input: bool,
    frozen: bool,
    group: str,
    narrow: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    kind, of = "relu" if relu_input else "x", [wanted[0], False, wanted[1]]
    return _backward(
        grad, x, kind, [], [weight], [gamma], [beta], raw, stats, open, stride, False, True, frozen, group, of
    )
