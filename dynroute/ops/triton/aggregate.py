"""`aggregate` in Triton: alpha_down * down + alpha_keep * keep + alpha_up * bilinear_x2(up)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.registration import nhwc_empty
from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import check, nhwc, wrapped
from dynroute.ops.triton.pieces import inside_if
from dynroute.space.wiring import DOWN, KEEP, UP


@triton.jit
def add_source(total, source, at, inside, alpha):
    """total + alpha * source, which is not read where alpha is 0."""
    return total + alpha * tl.load(source + at, inside_if(inside, alpha), 0.0).to(tl.float32)


@triton.jit
def add_bilinear(total, up, pixel, channel, inside, width, pixels, channels, alpha):
    """total [pixels, channels] + alpha * bilinear_x2 of an image of half the sides, not read where alpha is 0."""
    # a pixel lies a quarter from the source's own, and three from the next one on its side; borders repeat
    y, x = pixel // width, pixel % width
    small_height, small_width = pixels // width // 2, width // 2
    own_y, own_x = y // 2, x // 2
    next_y = tl.minimum(tl.maximum(own_y + y % 2 * 2 - 1, 0), small_height - 1)
    next_x = tl.minimum(tl.maximum(own_x + x % 2 * 2 - 1, 0), small_width - 1)
    is_read = inside_if(inside, alpha)
    value = tl.zeros_like(total)
    for corner in tl.static_range(4):
        row = own_y if corner < 2 else next_y
        column = own_x if corner % 2 == 0 else next_x
        by = (0.75 if corner < 2 else 0.25) * (0.75 if corner % 2 == 0 else 0.25)
        place = (row * small_width + column)[:, None] * channels + channel[None, :]
        value += by * tl.load(up + place, is_read, 0.0).to(tl.float32)
    return total + alpha * value


@triton.jit
def aggregate_kernel(
    down, keep, up, alphas, out, width, pixels, channels,
    HAS_DOWN: tl.constexpr, HAS_KEEP: tl.constexpr, HAS_UP: tl.constexpr, HAS_ALPHAS: tl.constexpr,
    PATH_UP: tl.constexpr, PATH_KEEP: tl.constexpr, PATH_DOWN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M pixels of a sample times BLOCK_N channels."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    first = sample * pixels * channels
    at = pixel[:, None] * channels + channel[None, :]
    of_down = tl.full((), 1.0, tl.float32)
    of_keep, of_up = of_down, of_down
    if HAS_ALPHAS:
        of_down = tl.load(alphas + sample * 3 + PATH_DOWN).to(tl.float32)
        of_keep = tl.load(alphas + sample * 3 + PATH_KEEP).to(tl.float32)
        of_up = tl.load(alphas + sample * 3 + PATH_UP).to(tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if HAS_DOWN:
        total = add_source(total, down + first, at, inside, of_down)
    if HAS_KEEP:
        total = add_source(total, keep + first, at, inside, of_keep)
    if HAS_UP:
        total = add_bilinear(
            total, up + sample * (pixels // 4) * channels, pixel, channel, inside, width, pixels, channels, of_up
        )
    tl.store(out + first + at, total.to(out.dtype.element_ty), inside)


@torch.library.triton_op("dynroute_triton::aggregate", mutates_args={})
def aggregate(down: Tensor | None, keep: Tensor | None, up: Tensor | None, alphas: Tensor | None) -> Tensor:
    sizes = [source.shape for source in (down, keep) if source is not None]
    if up is not None:
        n, c, h, w = up.shape
        sizes.append(torch.Size((n, c, 2 * h, 2 * w)))
    check(all(size == sizes[0] for size in sizes), "aggregate", "down, keep, up", "one size of output", sizes)
    n, c, h, w = sizes[0]
    given = next(source for source in (down, keep, up) if source is not None)
    out = nhwc_empty(given, (n, c, h, w))
    if out.numel() == 0:
        return out
    cut = configs.find("aggregate", c, given.dtype)
    grid = (triton.cdiv(h * w, cut.block_m), triton.cdiv(c, cut.block_n), n)
    maps = [nhwc(source) if source is not None else out for source in (down, keep, up)]
    wrapped(aggregate_kernel)[grid](
        *maps, alphas.contiguous() if alphas is not None else out, out, w, h * w, c,
        HAS_DOWN=down is not None, HAS_KEEP=keep is not None, HAS_UP=up is not None, HAS_ALPHAS=alphas is not None,
        PATH_UP=UP, PATH_KEEP=KEEP, PATH_DOWN=DOWN, **cut.tile(),
    )  # fmt: skip
    return out
