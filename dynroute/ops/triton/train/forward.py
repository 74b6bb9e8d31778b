"""A stage of training, forward: [depthwise 3x3 ->] 1x1 product, stored raw with tiles' sums; what operators return."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import some, wrapped
from dynroute.ops.triton.pieces import product, relu, tile_of, weights
from dynroute.ops.triton.train.norm import Tiles
from dynroute.ops.triton.train.samples import Samples, how_many, nth
from dynroute.ops.triton.train.source import Norm, Source, affine_of, filtered


@triton.jit
def forward_kernel(
    x, source, source_gamma, source_beta, source_stats, factor, taps, weight, raw, sums, samples,
    n, height, width, out_width, pixels, tiles, channels, out_channels, stride,
    KIND: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_NORM: tl.constexpr, HAS_TAPS: tl.constexpr,
    HAS_SUMS: tl.constexpr, ALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M pixels of a sample times BLOCK_N channels; per channel a pivot, and the sums of what lies apart
    from it and of its squares: digits that a mean far from zero would cost."""
    slot = tl.program_id(2)
    if slot >= how_many(samples, n, ALL):
        return
    sample = nth(samples, slot, ALL)
    tile = tl.program_id(0)
    pixel, column, is_pixel, there = tile_of(pixels, out_channels, BLOCK_M, BLOCK_N)
    first = sample * height * width * channels
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        a = filtered(
            x, source, source_gamma, source_beta, source_stats, taps, factor, first, sample, pixel, is_pixel, step,
            height, width, out_width, channels, stride, KIND, HAS_TAPS, HAS_FACTOR, HAS_NORM,
        )  # fmt: skip
        b = weights(weight, column, step, out_channels, channels).to(raw.dtype.element_ty)
        total = product(a.to(raw.dtype.element_ty), b, total, WIDE)
    inside = is_pixel[:, None] & there[None, :]
    rounded = total.to(raw.dtype.element_ty)
    place = sample * pixels * out_channels + (pixel[:, None] * out_channels + column[None, :])
    tl.store(raw + place, rounded, inside)
    if HAS_SUMS:
        value = tl.where(inside, rounded.to(tl.float32), 0.0)
        pivot = tl.sum(value, 0) / tl.minimum(pixels - tile * BLOCK_M, BLOCK_M).to(tl.float32)
        apart = tl.where(inside, value - pivot[None, :], 0.0)
        to = sums + (slot.to(tl.int64) * tiles + tile) * 3 * out_channels + column
        tl.store(to, pivot, there)
        tl.store(to + out_channels, tl.sum(apart, 0), there)
        tl.store(to + 2 * out_channels, tl.sum(apart * apart, 0), there)


def forward(
    source: Source, taps: Tensor | None, weight: Tensor, raw: Tensor, samples: Samples, stride: int, with_sums: bool
) -> Tiles | None:
    """Writes `raw` [N, Cout, H', W']; what `norm.statistics` wants, if it is to have sums."""
    n, out_channels, out_height, out_width = raw.shape
    channels, pixels = source.size[2], out_height * out_width
    cut = configs.find("train_forward", channels, raw.dtype)
    tiles = triton.cdiv(pixels, cut.block_m)
    sums = weight.new_empty((n * tiles, 3, out_channels)) if with_sums else weight
    if raw.numel():
        wrapped(forward_kernel)[(tiles, triton.cdiv(out_channels, cut.block_n), n)](
            taps=some(taps, weight), weight=weight.contiguous(), raw=raw, sums=sums,
            out_width=out_width, pixels=pixels, tiles=tiles, out_channels=out_channels, stride=stride,
            HAS_TAPS=taps is not None, HAS_SUMS=with_sums, **source.arguments(), **samples.arguments(raw),
            **cut.product(),
        )  # fmt: skip
    return Tiles(sums, tiles, pixels, cut.block_m) if with_sums else None


@triton.jit
def apply_kernel(
    raw, gamma, beta, stats, x, weight, out, samples, n, pixels, channels,
    HAS_X: tl.constexpr, HAS_WEIGHT: tl.constexpr, RELU: tl.constexpr, ALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """weight * ReLU(BatchNorm(raw) + x), each but the BatchNorm where it is wanted."""
    slot = tl.program_id(2)
    if slot >= how_many(samples, n, ALL):
        return
    sample = nth(samples, slot, ALL)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    inside = is_pixel[:, None] & there[None, :]
    at = sample * pixels * channels + (pixel[:, None] * channels + column[None, :])
    scale, shift, _mean, _invstd = affine_of(gamma, beta, stats, column, there, channels)
    value = tl.load(raw + at, inside, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    if HAS_X:
        value = value + tl.load(x + at, inside, 0.0).to(tl.float32)
    if RELU:
        value = relu(value)
    if HAS_WEIGHT:
        value = value * tl.load(weight + sample)
    tl.store(out + at, value.to(out.dtype.element_ty), inside)


def apply(
    raw: Tensor,
    norm: Norm,
    out: Tensor,
    samples: Samples,
    relu: bool,
    x: Tensor | None = None,
    weight: Tensor | None = None,
) -> None:
    """Writes `out`, like `raw`, for the samples that take part. weight: [N]."""
    n, channels, height, width = raw.shape
    if raw.numel() == 0:
        return
    cut, pixels = configs.find("train_map", channels, raw.dtype), height * width
    wrapped(apply_kernel)[(triton.cdiv(pixels, cut.block_m), triton.cdiv(channels, cut.block_n), n)](
        raw=raw, x=some(x, raw), weight=some(weight, raw), out=out, pixels=pixels,
        channels=channels, HAS_X=x is not None, HAS_WEIGHT=weight is not None, RELU=relu, **norm.arguments(),
        **samples.arguments(out), **cut.tile(),
    )  # fmt: skip
