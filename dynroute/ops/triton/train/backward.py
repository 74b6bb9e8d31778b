"""A stage of training, backwards: sums for its BatchNorm, gradients of what its product read and of both weights."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import some, wrapped
from dynroute.ops.triton.pieces import product, relu, tile_of
from dynroute.ops.triton.train.norm import Tiles, reduce
from dynroute.ops.triton.train.samples import Samples, how_many, nth
from dynroute.ops.triton.train.source import Gradient, Norm, Source, affine_of, filtered, raw_gradient

PROGRAMS = 512  # that weights' gradients are shared out to, at least, where there are pixels enough


@triton.jit
def sums_kernel(
    grad, raw, gamma, beta, stats, x, weight, behind, sums, dots, samples, n, pixels, tiles, channels,
    HAS_X: tl.constexpr, HAS_WEIGHT: tl.constexpr, RELU: tl.constexpr, STORE: tl.constexpr, ALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient behind a BatchNorm, of what is `apply`'s; its sum and that of its product with what is normalised.

    HAS_WEIGHT: also dots, of the gradient with what the weight multiplies.
    """
    slot = tl.program_id(2)
    if slot >= how_many(samples, n, ALL):
        return
    sample = nth(samples, slot, ALL)
    tile = tl.program_id(0)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    inside = is_pixel[:, None] & there[None, :]
    at = sample * pixels * channels + (pixel[:, None] * channels + column[None, :])
    scale, shift, mean, invstd = affine_of(gamma, beta, stats, column, there, channels)
    value = tl.load(raw + at, inside, 0.0).to(tl.float32)
    of = tl.load(grad + at, inside, 0.0).to(tl.float32)
    if RELU:
        made = value * scale[None, :] + shift[None, :]
        if HAS_X:
            made = made + tl.load(x + at, inside, 0.0).to(tl.float32)
        if HAS_WEIGHT:
            part = tl.sum(tl.sum(tl.where(inside, of * relu(made), 0.0), 1), 0)
            tl.store(dots + (sample * tiles + tile) * tl.num_programs(1) + tl.program_id(1), part)
            of = of * tl.load(weight + sample)
        of = tl.where(made > 0.0, of, 0.0)
    if STORE:
        rounded = of.to(behind.dtype.element_ty)
        tl.store(behind + at, rounded, inside)
        of = rounded.to(tl.float32)
    to = sums + (slot.to(tl.int64) * tiles + tile) * 2 * channels + column
    tl.store(to, tl.sum(of, 0), there)
    normal = tl.where(inside, (value - mean[None, :]) * invstd[None, :], 0.0)
    tl.store(to + channels, tl.sum(of * normal, 0), there)


def sums(
    grad: Tensor,
    raw: Tensor,
    norm: Norm,
    samples: Samples,
    relu: bool,
    x: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tiles, Tensor | None]:
    """The gradient behind a BatchNorm, its tiles' sums, and with a weight [N] the parts of its gradient [N, parts]."""
    n, channels, height, width = raw.shape
    cut, pixels = configs.find("train_map", channels, raw.dtype), height * width
    tiles, blocks = triton.cdiv(pixels, cut.block_m), triton.cdiv(channels, cut.block_n)
    behind = samples.new_map(raw, raw.shape) if relu else grad
    found = norm.stats.new_empty((n * tiles, 2, channels))
    dots = norm.stats.new_zeros((n, tiles * blocks)) if weight is not None else None
    if raw.numel():
        wrapped(sums_kernel)[(tiles, blocks, n)](
            grad=grad, raw=raw, x=some(x, raw), weight=some(weight, raw),
            behind=behind, sums=found, dots=some(dots, found), pixels=pixels, tiles=tiles,
            channels=channels, HAS_X=x is not None, HAS_WEIGHT=weight is not None, RELU=relu, STORE=relu,
            **norm.arguments(), **samples.arguments(found), **cut.tile(),
        )  # fmt: skip
    return behind, Tiles(found, tiles, pixels, cut.block_m), dots


@triton.jit
def product_kernel(
    grad, raw, gamma, beta, stats, means, grad_factor, weight, x, out, samples,
    n, pixels, width, to_height, to_width, channels, out_channels, stride,
    HAS_GRAD_FACTOR: tl.constexpr, POOLED: tl.constexpr, KIND: tl.constexpr, ALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The gradient of what a product read: raw gradients times its weights, in steps of BLOCK_K output channels.

    It goes where the forward read: to every stride-th pixel, or a quarter of it to four ("quarter"); "relu": by x's.
    """
    slot = tl.program_id(2)
    if slot >= how_many(samples, n, ALL):
        return
    sample = nth(samples, slot, ALL)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    first = sample * pixels * out_channels
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, out_channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        is_step = step < out_channels
        a = raw_gradient(
            grad, raw, gamma, beta, stats, means, grad_factor, sample,
            first + (pixel[:, None] * out_channels + step[None, :]), is_pixel[:, None] & is_step[None, :], step,
            is_step, out_channels, HAS_GRAD_FACTOR, POOLED,
        )  # fmt: skip
        b = tl.load(weight + step[:, None] * channels + column[None, :], is_step[:, None] & there[None, :], 0.0)
        total = product(a.to(out.dtype.element_ty), b.to(out.dtype.element_ty), total, WIDE)
    inside = is_pixel[:, None] & there[None, :]
    y = pixel // width
    at = pixel % width
    to = sample * to_height * to_width * channels
    if KIND == "quarter":
        value = (0.25 * total).to(out.dtype.element_ty)
        for corner in tl.static_range(4):
            place = (y * 4 + 1 + corner // 2) * to_width + at * 4 + 1 + corner % 2
            tl.store(out + to + (place[:, None] * channels + column[None, :]), value, inside)
    else:
        place = to + ((y * stride * to_width + at * stride)[:, None] * channels + column[None, :])
        if KIND == "relu":
            total = tl.where(tl.load(x + place, inside, 0.0).to(tl.float32) > 0.0, total, 0.0)
        tl.store(out + place, total.to(out.dtype.element_ty), inside)


def product_backward(
    gradient: Gradient, weight: Tensor, samples: Samples, height: int, width: int, stride: int = 1, kind: str = "x",
    x: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The gradient of what a product read, [N, Cin, height, width]: with a stride that is not 1, or from a "quarter",
    zeros where it did not read; "relu": before the ReLU of x."""
    n, out_channels, small_height, small_width = gradient.raw.shape
    channels = weight.shape[1]
    is_whole = stride == 1 and kind != "quarter"
    out = samples.new_map(gradient.raw, (n, channels, height, width), is_whole)
    if out.numel():
        cut, pixels = configs.find("train_product", out_channels, out.dtype), small_height * small_width
        wrapped(product_kernel)[(triton.cdiv(pixels, cut.block_m), triton.cdiv(channels, cut.block_n), n)](
            weight=weight.contiguous(), x=some(x, out), out=out, pixels=pixels, width=small_width,
            to_height=height, to_width=width, channels=channels, out_channels=out_channels, stride=stride, KIND=kind,
            **gradient.arguments(), **samples.arguments(out), **cut.product(),
        )  # fmt: skip
    return out


@triton.jit
def outer_kernel(
    grad, raw, gamma, beta, stats, means, grad_factor,
    x, source, source_gamma, source_beta, source_stats, factor, taps, parts, samples,
    n, height, width, out_width, pixels, tiles, channels, out_channels, stride,
    HAS_GRAD_FACTOR: tl.constexpr, POOLED: tl.constexpr, KIND: tl.constexpr, HAS_FACTOR: tl.constexpr,
    HAS_NORM: tl.constexpr, HAS_TAPS: tl.constexpr, ALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A part of a product's weights' gradient, [BLOCK_N output channels, BLOCK_K input channels]: over every
    num_programs(2)-th part of the tiles of BLOCK_M pixels. Both factors are made again."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    there, is_step = column < out_channels, step < channels
    part = tl.program_id(2)
    all_tiles = how_many(samples, n, ALL) * tiles
    of_each = tl.cdiv(all_tiles, tl.num_programs(2))
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for at in range(part * of_each, tl.minimum((part + 1) * of_each, all_tiles)):
        sample = nth(samples, at // tiles, ALL)
        pixel = at % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        is_pixel = pixel < pixels
        a = raw_gradient(
            grad, raw, gamma, beta, stats, means, grad_factor, sample,
            sample * pixels * out_channels + (pixel[:, None] * out_channels + column[None, :]),
            is_pixel[:, None] & there[None, :], column, there, out_channels, HAS_GRAD_FACTOR, POOLED,
        )  # fmt: skip
        b = filtered(
            x, source, source_gamma, source_beta, source_stats, taps, factor, sample * height * width * channels,
            sample, pixel, is_pixel, step, height, width, out_width, channels, stride, KIND, HAS_TAPS, HAS_FACTOR,
            HAS_NORM,
        )  # fmt: skip
        total = product(tl.trans(a.to(raw.dtype.element_ty)), b.to(raw.dtype.element_ty), total, WIDE)
    to = (part * out_channels + column)[:, None] * channels + step[None, :]
    tl.store(parts + to, total, there[:, None] & is_step[None, :])


def outer(gradient: Gradient, source: Source, taps: Tensor | None, samples: Samples, stride: int, to: Tensor) -> None:
    """Writes the gradient of a product's weights, [Cout * Cin] of float32."""
    n, out_channels, height, width = gradient.raw.shape
    channels, pixels = source.size[2], height * width
    cut = configs.find("train_outer", channels, gradient.raw.dtype)
    tiles = triton.cdiv(pixels, cut.block_m)
    blocks = triton.cdiv(out_channels, cut.block_n), triton.cdiv(channels, cut.block_k)
    count = max(min(n * tiles, triton.cdiv(PROGRAMS, blocks[0] * blocks[1])), 1)
    parts = to.new_empty((count, to.numel()))
    wrapped(outer_kernel)[blocks[0], blocks[1], count](
        taps=some(taps, parts), parts=parts, out_width=width, pixels=pixels, tiles=tiles,
        out_channels=out_channels, stride=stride, HAS_TAPS=taps is not None, **gradient.arguments(),
        **source.arguments(), **samples.arguments(parts), **cut.product(),
    )  # fmt: skip
    reduce(parts, to, Samples(count), 1)


@triton.jit
def depthwise_kernel(
    grad, x, source, source_gamma, source_beta, source_stats, factor, taps, added, more, more_weight,
    out, sums, parts, samples,
    n, height, width, out_height, out_width, pixels, tiles, channels, stride,
    KIND: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_NORM: tl.constexpr, HAS_ADDED: tl.constexpr,
    HAS_MORE: tl.constexpr, HAS_OUT: tl.constexpr, HAS_PARTS: tl.constexpr, ALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A depthwise 3x3's backward for BLOCK_M pixels of its source: their gradient, before the source's ReLU and behind
    its BatchNorm, with that one's sums; a part of the taps' gradient. To x's gradient `added` and `more` are added."""
    slot = tl.program_id(2)
    if slot >= how_many(samples, n, ALL):
        return
    sample = nth(samples, slot, ALL)
    tile = tl.program_id(0)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    inside = is_pixel[:, None] & there[None, :]
    first = sample * pixels * channels
    at = first + (pixel[:, None] * channels + column[None, :])
    value = filtered(
        x, source, source_gamma, source_beta, source_stats, taps, factor, first, sample, pixel, is_pixel, column,
        height, width, width, channels, 1, KIND, False, HAS_FACTOR, HAS_NORM,
    )  # fmt: skip
    of_x = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    row = slot.to(tl.int64) * tiles + tile
    y0 = pixel // width + 1
    x0 = pixel % width + 1
    for tap in tl.static_range(9):  # of the output pixels that read these
        y = y0 - tap // 3
        column_at = x0 - tap % 3
        is_read = is_pixel & (y >= 0) & (column_at >= 0) & (y % stride == 0) & (column_at % stride == 0)
        y = y // stride
        column_at = column_at // stride
        is_read = is_read & (y < out_height) & (column_at < out_width)
        place = sample * out_height * out_width * channels
        place = place + ((y * out_width + column_at)[:, None] * channels + column[None, :])
        by = tl.load(grad + place, is_read[:, None] & there[None, :], 0.0).to(tl.float32)
        of_x += by * tl.load(taps + tap * channels + column, there, 0.0)[None, :]
        if HAS_PARTS:
            tl.store(parts + (row * 9 + tap) * channels + column, tl.sum(by * value, 0), there)
    if KIND == "normed":
        of_x = tl.where(value > 0.0, of_x, 0.0)
    if HAS_ADDED:
        of_x += tl.load(added + at, inside, 0.0).to(tl.float32)
    if HAS_MORE:
        of_x += tl.load(more_weight + sample) * tl.load(more + at, inside, 0.0).to(tl.float32)
    if HAS_OUT:
        rounded = of_x.to(out.dtype.element_ty)
        tl.store(out + at, rounded, inside)
        if HAS_NORM:
            of_x = tl.where(inside, rounded.to(tl.float32), 0.0)
            _scale, _shift, mean, invstd = affine_of(source_gamma, source_beta, source_stats, column, there, channels)
            raw = tl.load(source + at, inside, 0.0).to(tl.float32)
            to = sums + row * 2 * channels + column
            tl.store(to, tl.sum(of_x, 0), there)
            tl.store(to + channels, tl.sum(of_x * ((raw - mean[None, :]) * invstd[None, :]), 0), there)


def depthwise_backward(
    grad: Tensor, source: Source, taps: Tensor, samples: Samples, stride: int, grad_source: Tensor | None,
    grad_taps: Tensor | None, added: Tensor | None = None, more: tuple[Tensor, Tensor] | None = None,
) -> Tiles | None:  # fmt: skip
    """Writes the gradient of a depthwise's source, [N, C, H, W], and of its weights, [C * 9]; sums for the source's
    BatchNorm, if it has one. taps: [9, C]; more: a map, and by how much it counts [N]."""
    n, channels, out_height, out_width = grad.shape
    height, width, _ = source.size
    cut, pixels = configs.find("train_depthwise", channels, grad.dtype), height * width
    tiles = triton.cdiv(pixels, cut.block_m)
    sums = taps.new_empty((n * tiles if source.norm is not None else 0, 2, channels))
    parts = taps.new_empty((n * tiles if grad_taps is not None else 0, 9 * channels))
    if grad.numel():
        wrapped(depthwise_kernel)[(tiles, triton.cdiv(channels, cut.block_n), n)](
            grad=grad, taps=taps, added=some(added, grad),
            more=more[0] if more is not None else grad, more_weight=more[1] if more is not None else taps,
            out=some(grad_source, grad), sums=sums, parts=parts, out_height=out_height,
            out_width=out_width, pixels=pixels, tiles=tiles, stride=stride, HAS_ADDED=added is not None,
            HAS_MORE=more is not None, HAS_OUT=grad_source is not None, HAS_PARTS=grad_taps is not None,
            **source.arguments(), **samples.arguments(some(grad_source, parts)), **cut.tile(),
        )  # fmt: skip
    if grad_taps is not None:
        reduce(parts, grad_taps, samples, tiles, columns=channels)
    return Tiles(sums, tiles, pixels, cut.block_m) if source.norm is not None else None
