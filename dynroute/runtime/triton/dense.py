"""Kernels of what every sample passes through, before the rows of nodes and behind them."""

from __future__ import annotations

import triton
import triton.language as tl

from dynroute.ops.triton.aggregate import add_bilinear, add_source
from dynroute.ops.triton.pieces import affine, count, product, relu, weights
from dynroute.runtime.triton.routed import handed_on, image_of


@triton.jit(do_not_specialize=["nodes", "node_counters", "sample_counters"])
def begin_kernel(present, slots, node_macs, sample_macs, nodes, node_counters, sample_counters, BLOCK: tl.constexpr):
    """No work is counted yet; of the first row scale 0 is present, in the first of its two maps."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.int64)
    tl.store(node_macs + at, zero, at < node_counters)
    tl.store(sample_macs + at, zero, at < sample_counters)
    tl.store(present + at, at % 4 == 0, at < nodes)
    tl.store(slots + at, zero.to(tl.int32), at < nodes)


@triton.jit(do_not_specialize=["counter", "counters", "height", "width", "out_width", "pixels"])
def conv_kernel(
    x, weight, scale, shift, out, macs,
    counter, counters, height, width, out_width, pixels, channels, out_channels,
    to_pixel, to_channel, from_pixel, from_channel,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A dense 3x3 convolution, scale and shift: a product over 9 * channels, (ky * 3 + kx) * channels + c, whose left
    side is read where it lies. `to_` and `from_`: steps from a pixel, or a channel, to the next, of `out` and `x`."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y0, x0 = pixel // out_width * STRIDE - PADDING, pixel % out_width * STRIDE - PADDING
    image = x + sample * height * width * channels
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, 9 * channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        tap, channel = step // channels, step % channels
        y, at = y0[:, None] + (tap // 3)[None, :], x0[:, None] + (tap % 3)[None, :]
        is_map = (y >= 0) & (y < height) & (at >= 0) & (at < width)
        is_a = is_map & (pixel < pixels)[:, None] & (step < 9 * channels)[None, :]
        a = tl.load(image + ((y * width + at) * from_pixel + channel[None, :] * from_channel), is_a, 0.0)
        b = weights(weight, column, step, out_channels, 9 * channels)
        total = product(a.to(b.dtype), b, total, WIDE)
    total = affine(total, scale, shift, column, column < out_channels)
    if RELU:
        total = relu(total)
    to = out + sample * pixels * out_channels + (pixel[:, None] * to_pixel + column[None, :] * to_channel)
    tl.store(to, total.to(out.dtype.element_ty), (pixel < pixels)[:, None] & (column < out_channels)[None, :])
    count(macs + sample * counters + counter, pixels, 9 * channels * out_channels)


@triton.jit(do_not_specialize=["n", "at", "counter", "counters", "width", "pixels"])
def merge_kernel(
    maps, coarse, weight, scale, shift, out, alphas, closed, slots, macs,
    n, at, counter, counters, width, pixels, channels, out_channels,
    HAS_COARSE: tl.constexpr, PATH_KEEP: tl.constexpr, CLOSED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A step of the decoder: ReLU of the 1x1 product of what the last row keeps, 0 where that is nothing, plus
    bilinear_x2 of the coarser scale's."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    keep = handed_on(alphas, closed, sample, at, PATH_KEEP, PATH_KEEP, CLOSED)
    own = maps + image_of(sample, slots, n, at, 1) * pixels * channels
    small = coarse + sample * (pixels // 4) * channels
    one = tl.full((), 1.0, tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        inside = (pixel < pixels)[:, None] & (step < channels)[None, :]
        a = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        a = add_source(a, own, pixel[:, None] * channels + step[None, :], inside, keep)
        if HAS_COARSE:
            a = add_bilinear(a, small, pixel, step, inside, width, pixels, channels, one)
        b = weights(weight, column, step, out_channels, channels)
        total = product(a.to(b.dtype), b, total, WIDE)
    total = relu(affine(total, scale, shift, column, column < out_channels))
    to = out + sample * pixels * out_channels + (pixel[:, None] * out_channels + column[None, :])
    tl.store(to, total.to(out.dtype.element_ty), (pixel < pixels)[:, None] & (column < out_channels)[None, :])
    count(macs + sample * counters + counter, pixels, channels * out_channels)


@triton.jit
def bilinear_x4(plane, y, x, inside, height, width):
    """float32 [pixels]: those at y, x of a plane [height, width] made four times as large; the border is repeated."""
    above, left = (y + 2) // 4 - 1, (x + 2) // 4 - 1
    top, bottom = tl.maximum(above, 0) * width, tl.minimum(above + 1, height - 1) * width
    first, second = tl.maximum(left, 0), tl.minimum(left + 1, width - 1)
    of_bottom = ((y + 2) % 4).to(tl.float32) * 0.25 + 0.125
    of_second = ((x + 2) % 4).to(tl.float32) * 0.25 + 0.125
    upper = tl.load(plane + top + first, inside, 0.0) * (1.0 - of_second)
    upper += tl.load(plane + top + second, inside, 0.0) * of_second
    lower = tl.load(plane + bottom + first, inside, 0.0) * (1.0 - of_second)
    lower += tl.load(plane + bottom + second, inside, 0.0) * of_second
    return upper * (1.0 - of_bottom) + lower * of_bottom


@triton.jit(do_not_specialize=["height", "width", "classes"])
def logits_kernel(small, logits, height, width, out_width, pixels, classes, BLOCK: tl.constexpr):
    """BLOCK pixels of a class of a sample's logits at full size, from the small planes [N, classes, height, width]."""
    plane = tl.program_id(2).to(tl.int64) * classes + tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    value = bilinear_x4(small + plane * height * width, pixel // out_width, pixel % out_width, inside, height, width)
    tl.store(logits + plane * pixels + pixel, value, inside)


@triton.jit(do_not_specialize=["height", "width", "classes"])
def labels_kernel(small, labels, height, width, out_width, pixels, classes, BLOCK: tl.constexpr):
    """The class of the largest logit of BLOCK pixels of a sample, the first of equal ones; logits are not written."""
    sample = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, y, x = pixel < pixels, pixel // out_width, pixel % out_width
    planes = small + sample * classes * height * width
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    label = tl.zeros((BLOCK,), tl.int32)
    for k in range(classes):
        value = bilinear_x4(planes + k * height * width, y, x, inside, height, width)
        label = tl.where(value > largest, k, label)
        largest = tl.maximum(largest, value)
    tl.store(labels + sample * pixels + pixel, label.to(tl.uint8), inside)
