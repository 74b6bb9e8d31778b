"""What Triton's kernels share on the device."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(pixels, channels, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A program's pixels and channels, and which of them there are."""
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    return pixel, channel, pixel < pixels, channel < channels


@triton.jit
def product(a, b, total, WIDE: tl.constexpr):
    """total + a @ b, float32 in float32. WIDE: of operands made float32, which the interpreter wants of bfloat16; the
    products and their sums are the same."""
    if WIDE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def relu(value):
    """NaN stays NaN, as in torch."""
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def is_path_open(alpha, CLOSED: tl.constexpr):
    """bool, as alpha: NaN closes nothing."""
    return tl.where(alpha <= CLOSED, 0, 1) != 0


@triton.jit
def inside_if(inside, number):
    """`inside` where a number is not 0, else nothing. Of what compares one number the interpreter makes no mask."""
    return inside & (tl.zeros_like(inside.to(tl.int32)) + tl.where(number == 0, 0, 1) != 0)


@triton.jit
def both(one, other):
    """one + other, on the way into a product. By way of a reduction, past which the compiler does not move the layout
    that the product wants: what made them would be made in it, by several warps, of loads of two bytes."""
    return tl.sum(tl.join(one, other), 2)


@triton.jit
def affine(total, scale, shift, column, there):
    """total [., columns] times a column's scale, plus its shift."""
    total = total * tl.load(scale + column, there, 0.0).to(tl.float32)[None, :]
    return total + tl.load(shift + column, there, 0.0).to(tl.float32)[None, :]


@triton.jit
def weights(weight, column, step, columns, channels):
    """[step, column] of a product's weights [columns, channels]; 0 beyond them."""
    there = (column < columns)[None, :] & (step < channels)[:, None]
    return tl.load(weight + column[None, :] * channels + step[:, None], there, 0.0)


@triton.jit
def count(counter, pixels, each):
    """Adds the work on so many pixels to a counter of 64 bits. Of a launch one program may count for a sample: that of
    its first tile."""
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(counter, tl.load(counter) + tl.full((), 1, tl.int64) * pixels * each)
