"""`node_train` in Triton: a node's cell, and what its paths make of it, weighted by the alphas."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import check, nhwc, some, strided, wrapped
from dynroute.ops.triton.pieces import inside_if, relu, tile_of
from dynroute.ops.triton.train import norm
from dynroute.ops.triton.train.backward import outer, product_backward, sums
from dynroute.ops.triton.train.chain import Chain, Flat, Wanted, backward_stages, check_chain, forward_stages
from dynroute.ops.triton.train.forward import apply, forward
from dynroute.ops.triton.train.norm import Tiles
from dynroute.ops.triton.train.samples import NodeSamples, Samples, of_node
from dynroute.ops.triton.train.source import Gradient, Norm, Source, affine_of
from dynroute.space.wiring import DOWN, KEEP, UP


@triton.jit
def keep_kernel(
    x, raw, gamma, beta, stats, factor, hidden_weight, x_weight, out, pixels, channels,
    HAS_FACTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What H and x weigh in keep, for every sample."""
    sample = tl.program_id(2).to(tl.int64)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    inside = is_pixel[:, None] & there[None, :]
    at = sample * pixels * channels + (pixel[:, None] * channels + column[None, :])
    scale, shift, _mean, _invstd = affine_of(gamma, beta, stats, column, there, channels)
    of_hidden = tl.load(hidden_weight + sample)
    by = 1.0
    if HAS_FACTOR:
        by = tl.load(factor + sample)
    read = tl.load(x + at, inside, 0.0).to(tl.float32)
    value = tl.load(raw + at, inside_if(inside, of_hidden), 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    hidden = of_hidden * relu(read + by * value)
    of_x = tl.load(x_weight + sample)
    kept = tl.where(inside_if(inside, of_x), of_x * read, 0.0) + tl.where(inside_if(inside, of_hidden), hidden, 0.0)
    tl.store(out + at, kept.to(out.dtype.element_ty), inside)


@triton.jit
def hidden_kernel(
    grad_keep, of_up, of_down, x, raw, gamma, beta, stats, factor, hidden_weight, x_weight, slots, grad_hidden, grad_x,
    sums, dots, height, width, pixels, tiles, channels,
    HAS_KEEP: tl.constexpr, HAS_UP: tl.constexpr, HAS_DOWN: tl.constexpr, HAS_X: tl.constexpr, HAS_FACTOR: tl.constexpr,
    ALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of what H's ReLU read, out of keep's and both paths', with sums for the cell's last BatchNorm and
    dots of keep's gradient with H and x. Of samples that take no part, whose keep is x alone, x's gradient."""
    sample = tl.program_id(2).to(tl.int64)
    tile = tl.program_id(0)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    inside = is_pixel[:, None] & there[None, :]
    first = sample * pixels * channels
    at = first + (pixel[:, None] * channels + column[None, :])
    slot = sample
    if not ALL:
        slot = tl.load(slots + sample).to(tl.int64)
    opened = inside_if(inside, tl.maximum(slot + 1, 0))
    there_if_open = inside_if(there, tl.maximum(slot + 1, 0))
    scale, shift, mean, invstd = affine_of(gamma, beta, stats, column, there, channels)
    by = 1.0
    if HAS_FACTOR:
        by = tl.load(factor + sample)
    read = tl.load(x + at, inside, 0.0).to(tl.float32)
    value = tl.load(raw + at, opened, 0.0).to(tl.float32)
    hidden = relu(read + by * (value * scale[None, :] + shift[None, :]))
    hidden = tl.where(opened, hidden, 0.0)
    of = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    place = (sample * tiles + tile) * tl.num_programs(1) + tl.program_id(1)
    if HAS_KEEP:
        kept = tl.load(grad_keep + at, inside, 0.0).to(tl.float32)
        tl.store(dots + place * 2, tl.sum(tl.sum(kept * hidden, 1), 0))
        tl.store(dots + place * 2 + 1, tl.sum(tl.sum(tl.where(inside, kept * read, 0.0), 1), 0))
        if HAS_X:
            of_x = (tl.load(x_weight + sample) * kept).to(grad_x.dtype.element_ty)
            tl.store(grad_x + at, of_x, inside_if(inside, tl.minimum(slot, 0)))
        of = tl.load(hidden_weight + sample) * kept
    if HAS_UP:
        of += tl.load(of_up + at, opened, 0.0).to(tl.float32)
    if HAS_DOWN:
        y = pixel // width
        column_at = pixel % width
        is_small = (y % 2 == 0) & (column_at % 2 == 0)
        small_width = (width + 1) // 2
        small = sample * ((height + 1) // 2) * small_width * channels
        small = small + ((y // 2 * small_width + column_at // 2)[:, None] * channels + column[None, :])
        of += tl.load(of_down + small, opened & is_small[:, None], 0.0).to(tl.float32)
    of = tl.where(hidden > 0.0, of, 0.0)
    rounded = of.to(grad_hidden.dtype.element_ty)
    tl.store(grad_hidden + at, rounded, opened)
    of = by * rounded.to(tl.float32)
    to = sums + (slot * tiles + tile) * 2 * channels + column
    normal = tl.where(opened, (value - mean[None, :]) * invstd[None, :], 0.0)
    tl.store(to, tl.sum(of, 0), there_if_open)
    tl.store(to + channels, tl.sum(of * normal, 0), there_if_open)


@triton.jit
def alphas_kernel(
    up_dots, down_dots, dots, x_weight, out, up_parts, down_parts, parts, bridge,
    HAS_UP: tl.constexpr, HAS_DOWN: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_BRIDGE: tl.constexpr,
    PATH_UP: tl.constexpr, PATH_KEEP: tl.constexpr, PATH_DOWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A sample's alphas' gradients, out of what tiles left; in double, in order."""
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    up = tl.zeros((), tl.float64)
    down = tl.zeros((), tl.float64)
    keep = tl.zeros((), tl.float64)
    of_x = tl.zeros((), tl.float64)
    if HAS_UP:
        for first in range(0, up_parts, BLOCK):
            at = first + lane
            up += tl.sum(tl.load(up_dots + sample * up_parts + at, at < up_parts, 0.0).to(tl.float64), 0)
    if HAS_DOWN:
        for first in range(0, down_parts, BLOCK):
            at = first + lane
            down += tl.sum(tl.load(down_dots + sample * down_parts + at, at < down_parts, 0.0).to(tl.float64), 0)
    if HAS_KEEP:
        for first in range(0, parts, BLOCK):
            at = first + lane
            place = dots + (sample * parts + at) * 2
            keep += tl.sum(tl.load(place, at < parts, 0.0).to(tl.float64), 0)
            of_x += tl.sum(tl.load(place + 1, at < parts, 0.0).to(tl.float64), 0)
    passes_x = tl.where(tl.load(x_weight + sample) == 0.0, 0, 1) != 0
    if HAS_BRIDGE:
        passed = tl.where(passes_x, of_x / bridge, 0.0)
        up -= passed
        keep -= passed
        down -= passed
    else:
        keep = tl.where(passes_x, 0.0, keep)  # a closed sample's keep is x
    tl.store(out + sample * 3 + PATH_UP, up.to(tl.float32))
    tl.store(out + sample * 3 + PATH_KEEP, keep.to(tl.float32))
    tl.store(out + sample * 3 + PATH_DOWN, down.to(tl.float32))


class Path(NamedTuple):
    """A path that is there: UP or DOWN, every stride-th pixel, its 1x1, its BatchNorm's place in the lists."""

    path: int
    stride: int
    weight: Tensor
    norm: int


def _paths(up: Tensor | None, down: Tensor | None, stages: int) -> list[Path]:
    found: list[Path] = []
    for path, stride, weight in ((UP, 1, up), (DOWN, 2, down)):
        if weight is not None:
            found.append(Path(path, stride, weight, stages + len(found)))
    return found


def _norms(gamma: list[Tensor], beta: list[Tensor], stats: Tensor) -> list[Norm]:
    """stats: flat, [3, C] of each one after the other."""
    rows = stats.split([3 * of.shape[0] for of in gamma])
    return [Norm(g, b, row.view(3, -1)) for g, b, row in zip(gamma, beta, rows, strict=True)]


def _taking(samples: NodeSamples, path: Path) -> Samples:
    return samples.up if path.path == UP else samples.down


@torch.library.triton_op("dynroute_triton::node_train", mutates_args={})
def node_train(
    x: Tensor,
    alphas: Tensor,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    up: Tensor | None,
    down: Tensor | None,
    gamma: list[Tensor],
    beta: list[Tensor],
    running_mean: list[Tensor],
    running_var: list[Tensor],
    factor: Tensor | None,
    bridge: float,
    skip: bool,
    frozen: bool,
    group: str,
    eps: float,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, stages, paths = nhwc(x), len(pointwise), _paths(up, down, len(pointwise))
    n, c, h, w = x.shape
    check_chain("node_train", x, depthwise, pointwise, 1, narrow)
    check(alphas.shape == (n, 3), "node_train", "alphas", f"[{n}, 3]", list(alphas.shape))
    wanted_norms = stages + len(paths)
    check(len(gamma) == wanted_norms, "node_train", "gamma", f"{wanted_norms} BatchNorms'", len(gamma))
    samples = of_node(alphas, bridge, skip)
    stats = gamma[0].new_empty(3 * sum(of.shape[0] for of in gamma))
    norms = _norms(gamma, beta, stats)
    raw = samples.open.new_map(x, (stages * n, c, h, w))
    chain = Chain(x, "x", depthwise, pointwise, norms[:stages], raw, samples.open, 1)
    forward_stages(chain, running_mean, running_var, frozen, group, eps)

    hidden = Source("hidden", x, chain.raw_of(stages - 1), norms[stages - 1], factor)
    outs, raws = {UP: x.new_empty(0), DOWN: x.new_empty(0)}, {UP: x.new_empty(0), DOWN: x.new_empty(0)}
    for path in paths:
        of, k = _taking(samples, path), path.norm
        shape = (n, path.weight.shape[0], strided(h, path.stride), strided(w, path.stride))
        outs[path.path], raws[path.path] = of.new_map(x, shape), of.new_map(x, shape)
        tiles = forward(hidden, None, path.weight, raws[path.path], of, path.stride, not frozen)
        norm.statistics(tiles, of, running_mean[k], running_var[k], norms[k].stats, group, eps)
        weight = alphas[:, path.path].contiguous()
        apply(raws[path.path], norms[k], outs[path.path], of, relu=True, weight=weight)

    keep = torch.empty_like(x)
    if keep.numel():
        cut = configs.find("train_map", c, x.dtype)
        wrapped(keep_kernel)[(triton.cdiv(h * w, cut.block_m), triton.cdiv(c, cut.block_n), n)](
            x=x, raw=hidden.raw, factor=some(factor, x), hidden_weight=samples.hidden_weight,
            x_weight=samples.x_weight, out=keep, pixels=h * w, channels=c, HAS_FACTOR=factor is not None,
            **norms[stages - 1].arguments(), **cut.tile(),
        )  # fmt: skip
    return keep, outs[UP], outs[DOWN], raw, raws[UP], raws[DOWN], stats


@torch.library.triton_op("dynroute_triton::node_train_backward", mutates_args={})
def node_train_backward(
    grad_keep: Tensor | None,
    grad_up: Tensor | None,
    grad_down: Tensor | None,
    x: Tensor,
    alphas: Tensor,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    up: Tensor | None,
    down: Tensor | None,
    gamma: list[Tensor],
    beta: list[Tensor],
    raw: Tensor,
    up_raw: Tensor,
    down_raw: Tensor,
    stats: Tensor,
    factor: Tensor | None,
    bridge: float,
    skip: bool,
    frozen: bool,
    group: str,
    narrow: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    x, stages, paths = nhwc(x), len(pointwise), _paths(up, down, len(pointwise))
    n, c, h, w = x.shape
    samples, norms = of_node(alphas, bridge, skip), _norms(gamma, beta, stats)
    chain = Chain(x, "x", depthwise, pointwise, norms[:stages], raw, samples.open, 1)
    hidden = Source("hidden", x, chain.raw_of(stages - 1), norms[stages - 1], factor)
    weights = [[*depthwise], [*pointwise], [path.weight for path in paths]] if wanted[1] else [[], [], []]
    flat = Flat(gamma[0], *weights, gamma, beta)
    of_taps, of_products, of_paths, of_gamma, of_beta = (flat.take(these) for these in (*weights, gamma, beta))

    of_hidden: dict[int, Tensor] = {}
    dots: dict[int, Tensor] = {}
    for i, path in enumerate(paths):
        of, grad = _taking(samples, path), grad_up if path.path == UP else grad_down
        if grad is None:
            continue
        k, path_raw = path.norm, up_raw if path.path == UP else down_raw
        weight = alphas[:, path.path].contiguous()
        behind, tiles, found = sums(nhwc(grad), path_raw, norms[k], of, relu=True, weight=weight)
        assert found is not None
        means = norm.backward(tiles, of, norms[k], of_gamma[k], of_beta[k], frozen, group)
        gradient = Gradient(behind, path_raw, norms[k], means)
        if of_paths:
            outer(gradient, hidden, None, of, path.stride, of_paths[i])
        # at the path's own size: H's gradient adds it up
        of_hidden[path.path] = product_backward(gradient, path.weight, of, *path_raw.shape[2:])
        dots[path.path] = found

    cut = configs.find("train_map", c, x.dtype)
    tiles_of_map, blocks = triton.cdiv(h * w, cut.block_m), triton.cdiv(c, cut.block_n)
    grad_hidden, grad_x = torch.empty_like(x), torch.empty_like(x) if wanted[0] else None
    if grad_x is not None and grad_keep is None:
        grad_x.zero_()
    found_sums, kept_dots = stats.new_empty((n * tiles_of_map, 2, c)), stats.new_empty((n, tiles_of_map * blocks, 2))
    kept = nhwc(grad_keep) if grad_keep is not None else None
    if x.numel():
        anything = grad_hidden
        wrapped(hidden_kernel)[(tiles_of_map, blocks, n)](
            grad_keep=some(kept, anything), of_up=of_hidden.get(UP, anything),
            of_down=of_hidden.get(DOWN, anything), x=x, raw=hidden.raw,
            factor=some(factor, anything), hidden_weight=samples.hidden_weight,
            x_weight=samples.x_weight, slots=some(samples.slots, anything), grad_hidden=grad_hidden,
            grad_x=some(grad_x, anything), sums=found_sums, dots=kept_dots, height=h, width=w,
            pixels=h * w, tiles=tiles_of_map, channels=c, HAS_KEEP=kept is not None, HAS_UP=UP in of_hidden,
            HAS_DOWN=DOWN in of_hidden, HAS_X=grad_x is not None, HAS_FACTOR=factor is not None,
            ALL=samples.slots is None, **norms[stages - 1].arguments(), **cut.tile(),
        )  # fmt: skip
    of_map = Tiles(found_sums, tiles_of_map, h * w, cut.block_m)
    to = Wanted(wanted[0], of_taps, of_products, of_gamma, of_beta)
    more = (kept, samples.x_weight) if kept is not None else None
    backward_stages(chain, grad_hidden, of_map, to, frozen, group, factor, added=grad_hidden, more=more, grad_x=grad_x)

    grad_alphas = torch.empty_like(alphas, memory_format=torch.contiguous_format)
    if n:
        wrapped(alphas_kernel)[(n,)](
            up_dots=dots.get(UP, stats), down_dots=dots.get(DOWN, stats), dots=kept_dots, x_weight=samples.x_weight,
            out=grad_alphas, up_parts=_parts(dots, UP), down_parts=_parts(dots, DOWN), parts=tiles_of_map * blocks,
            bridge=bridge, HAS_UP=UP in dots, HAS_DOWN=DOWN in dots, HAS_KEEP=kept is not None, HAS_BRIDGE=bridge > 0,
            PATH_UP=UP, PATH_KEEP=KEEP, PATH_DOWN=DOWN, BLOCK=128,
        )  # fmt: skip
    return some(grad_x, x.new_empty((0, c, h, w))), grad_alphas, flat.all


def _parts(dots: dict[int, Tensor], path: int) -> int:
    return dots[path].shape[1] if path in dots else 0
