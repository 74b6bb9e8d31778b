"""Kernels of a row of nodes: they go over lists of samples that `route_kernel` made on the device.

A program whose place is not on its list ends at once; else the list says which sample it computes. Closed and absent
samples are neither read nor written, and nobody waits for a count. What a tile computes is the operators' own.

A node has two maps, `maps` [2, N, h, w, C']; `slots` [N, 4] says, for each sample, which of them is its own: X, when
the row's inputs are made, and then, in the next row's slots, what keep hands on, which of a closed sample is X itself.
`at` is the node's scale, `counter` the place of its part in a sample's `counters` counters. Sizes of maps choose no
kernel (`do_not_specialize`): an image of another size has nothing compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dynroute.ops.triton.aggregate import add_bilinear, add_source
from dynroute.ops.triton.gate import alphas_of, pooled_tile
from dynroute.ops.triton.pieces import count, is_path_open, relu
from dynroute.ops.triton.sepconv import sepconv_tile
from dynroute.ops.triton.transform import transform_tile

# Where a sample's image lies: in a tensor [N, ...]; its own of a node's two maps, or the other one.
PLAIN, OWN, OTHER = 0, 1, 2


@triton.jit
def image_of(sample, slots, n, at, WHERE: tl.constexpr):
    """The number of a sample's image, 64 bits."""
    image = sample
    if WHERE == 1:
        image = sample + tl.load(slots + sample * 4 + at) * n
    if WHERE == 2:
        image = sample + (1 - tl.load(slots + sample * 4 + at)) * n
    return image


@triton.jit
def handed_on(alphas, closed, sample, at, PATH: tl.constexpr, PATH_KEEP: tl.constexpr, CLOSED: tl.constexpr):
    """The weight of what a node hands on by a path: its alpha; 0 where path or node is closed or absent; 1 of the X
    that a closed node keeps."""
    alpha = tl.load(alphas + (sample * 4 + at) * 3 + PATH)
    open_weight = tl.where(is_path_open(alpha, CLOSED), alpha, 0.0)
    return tl.where(tl.load(closed + sample * 4 + at) != 0, 1.0 if PATH == PATH_KEEP else 0.0, open_weight)


@triton.jit(do_not_specialize=["n", "at", "width", "pixels"])
def pull_kernel(
    maps, down, up, alphas, closed, present, slots, n, at, width, pixels, channels,
    HAS_DOWN: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_UP: tl.constexpr,
    PATH_UP: tl.constexpr, PATH_KEEP: tl.constexpr, PATH_DOWN: tl.constexpr, CLOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """X of a present node where its keep source lies: what the row before hands on by `down`, keep and `up`."""
    sample = tl.program_id(2).to(tl.int64)
    if tl.load(present + sample * 4 + at) == 0:
        return
    zero = tl.zeros((), tl.float32)
    of_down, of_keep, of_up = zero, zero, zero
    if HAS_DOWN:
        of_down = handed_on(alphas, closed, sample, at - 1, PATH_DOWN, PATH_KEEP, CLOSED)
    if HAS_KEEP:
        of_keep = handed_on(alphas, closed, sample, at, PATH_KEEP, PATH_KEEP, CLOSED)
    if HAS_UP:
        of_up = handed_on(alphas, closed, sample, at + 1, PATH_UP, PATH_KEEP, CLOSED)
    if (of_keep != 1.0) | (of_down != 0.0) | (of_up != 0.0):  # else X lies there already
        pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        place = pixel[:, None] * channels + channel[None, :]
        x = maps + image_of(sample, slots, n, at, 1) * pixels * channels
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if HAS_DOWN:
            total = add_source(total, down + sample * pixels * channels, place, inside, of_down)
        if HAS_KEEP:
            total = add_source(total, x, place, inside, of_keep)
        if HAS_UP:
            small = up + sample * (pixels // 4) * channels
            total = add_bilinear(total, small, pixel, channel, inside, width, pixels, channels, of_up)
        tl.store(x + place, total.to(maps.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["n", "at", "counter", "counters", "height", "width", "small_width", "pixels", "tiles"])
def pool_kernel(
    maps, weight, scale, shift, present, slots, sums, macs,
    n, at, counter, counters, height, width, small_width, pixels, tiles, channels, out_channels,
    SMALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Of a present node's gate: the sum over a tile of X's pixels of what is pooled, of BLOCK_N channels."""
    sample, tile = tl.program_id(2).to(tl.int64), tl.program_id(0)
    if tl.load(present + sample * 4 + at) == 0:
        return
    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    x = maps + image_of(sample, slots, n, at, 1) * height * width * channels
    total = pooled_tile(
        x, weight, scale, shift, pixel, column, width, small_width, pixels, channels, out_channels, SMALL,
        BLOCK_M, BLOCK_N, BLOCK_K, WIDE,
    )  # fmt: skip
    tl.store(sums + (sample * tiles + tile) * out_channels + column, total, column < out_channels)
    count(macs + sample * counters + counter, pixels, channels * out_channels)


@triton.jit(do_not_specialize=["at", "counter", "counters", "pixels", "tiles"])
def alphas_kernel(
    sums, fc_weight, fc_bias, present, alphas, macs, at, counter, counters, pixels, tiles, channels,
    PATHS: tl.constexpr, GATES: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The alphas [N, 4, 3] of a present node for the paths that it has, bits of PATHS; fc_weight is [3, channels]."""
    sample = tl.program_id(2).to(tl.int64)
    if tl.load(present + sample * 4 + at) == 0:
        return
    lane = tl.arange(0, 4)
    there = ((PATHS >> lane) & 1) != 0
    value = alphas_of(
        sums + sample * tiles * channels, fc_weight, fc_bias, lane, there, pixels, tiles, channels, ACTIVATION, BLOCK
    )
    tl.store(alphas + (sample * 4 + at) * 3 + lane, value, there)
    count(macs + sample * counters + counter, GATES, channels)


@triton.jit(do_not_specialize=["n", "at", "counter", "counters", "height", "width", "out_width", "pixels"])
def stage_kernel(
    x, depthwise, pointwise, scale, shift, residual, out, samples, samples_count, slots, macs,
    n, at, counter, counters, height, width, out_width, pixels, channels, out_channels, stride,
    HAS_LIST: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A stage of a cell, of open samples; or of the stem, of all. The residual is the node's X."""
    place = tl.program_id(2)
    if HAS_LIST:
        if place >= tl.load(samples_count + at):
            return
        place = tl.load(samples + at * n + place)
    sample = place.to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (pixel < pixels)[:, None] & (column < out_channels)[None, :]
    total = sepconv_tile(
        x + image_of(sample, slots, n, at, FROM) * height * width * channels, depthwise, pointwise, scale, shift,
        pixel, column, height, width, out_width, pixels, channels, out_channels, stride,
        BLOCK_M, BLOCK_N, BLOCK_K, WIDE,
    )  # fmt: skip
    of_image = pixel[:, None] * out_channels + column[None, :]
    if HAS_RESIDUAL:
        own = residual + image_of(sample, slots, n, at, 1) * pixels * out_channels
        total = total + tl.load(own + of_image, inside, 0.0).to(tl.float32)
    to = out + image_of(sample, slots, n, at, TO) * pixels * out_channels
    tl.store(to + of_image, relu(total).to(out.dtype.element_ty), inside)
    count(macs + sample * counters + counter, pixels, channels * (9 + out_channels))


@triton.jit(do_not_specialize=["n", "at", "path", "counter", "counters", "height", "width", "out_width", "pixels"])
def path_kernel(
    maps, weight, scale, shift, out, samples, samples_count, slots, macs,
    n, at, path, counter, counters, height, width, out_width, pixels, channels, out_channels, stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Up, before its bilinear, or down, both before their alphas, out of what the node keeps; `slots` are the next
    row's."""
    place, number = tl.program_id(2), at * 3 + path
    if place >= tl.load(samples_count + number):
        return
    sample = tl.load(samples + number * n + place).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = transform_tile(
        maps + image_of(sample, slots, n, at, 1) * height * width * channels, weight, scale, shift, pixel, column,
        width, out_width, pixels, channels, out_channels, stride, BLOCK_M, BLOCK_N, BLOCK_K, WIDE,
    )  # fmt: skip
    to = out + sample * pixels * out_channels + (pixel[:, None] * out_channels + column[None, :])
    tl.store(to, total.to(out.dtype.element_ty), (pixel < pixels)[:, None] & (column < out_channels)[None, :])
    count(macs + sample * counters + counter, pixels, channels * out_channels)
