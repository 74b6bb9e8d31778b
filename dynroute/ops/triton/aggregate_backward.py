"""`aggregate`'s backward in Triton: gradients of the sources, each once, and dots for the alphas'."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.registration import nhwc_empty
from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import nhwc, wrapped
from dynroute.ops.triton.pieces import inside_if
from dynroute.space.wiring import DOWN, KEEP, UP


@triton.jit
def backward_kernel(
    grad, source, alphas, out, dots, height, width, channels, pixels,
    PATH: tl.constexpr, SMALL: tl.constexpr, HAS_ALPHAS: tl.constexpr, HAS_OUT: tl.constexpr, HAS_DOTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of one source, for BLOCK_M of its pixels and BLOCK_N channels. SMALL: it was read through a bilinear x2, each
    pixel by up to 4 x 4 of the gradient's [height, width]."""
    sample, tile = tl.program_id(2).to(tl.int64), tl.program_id(0)
    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    at = sample * pixels * channels + (pixel[:, None] * channels + channel[None, :])
    alpha = tl.full((), 1.0, tl.float32)
    if HAS_ALPHAS:
        alpha = tl.load(alphas + sample * 3 + PATH).to(tl.float32)
    is_read = inside_if(inside, alpha)
    if SMALL:
        small_width = width // 2
        small_height = height // 2
        y = pixel // small_width
        x = pixel % small_width
        of = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for corner in tl.static_range(16):
            row = 2 * y - 1 + corner // 4
            column = 2 * x - 1 + corner % 4
            next_y = tl.minimum(tl.maximum(row // 2 + row % 2 * 2 - 1, 0), small_height - 1)
            next_x = tl.minimum(tl.maximum(column // 2 + column % 2 * 2 - 1, 0), small_width - 1)
            by = tl.where(row // 2 == y, 0.75, 0.0) + tl.where(next_y == y, 0.25, 0.0)
            by = by * (tl.where(column // 2 == x, 0.75, 0.0) + tl.where(next_x == x, 0.25, 0.0))
            is_map = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = sample * height * width * channels
            place = place + ((row * width + column)[:, None] * channels + channel[None, :])
            of += by[:, None] * tl.load(grad + place, is_read & is_map[:, None], 0.0).to(tl.float32)
    else:
        of = tl.load(grad + at, is_read, 0.0).to(tl.float32)
    if HAS_DOTS:
        value = tl.load(source + at, is_read, 0.0).to(tl.float32)
        part = tl.sum(tl.sum(value * of, 1), 0)
        tl.store(dots + (sample * tl.num_programs(0) + tile) * tl.num_programs(1) + tl.program_id(1), part)
    if HAS_OUT:
        tl.store(out + at, (alpha * of).to(out.dtype.element_ty), inside)


@triton.jit
def alphas_kernel(dots, out, parts, PATH: tl.constexpr, BLOCK: tl.constexpr):
    """A sample's alpha's gradient; in double, in order."""
    sample = tl.program_id(0).to(tl.int64)
    total = tl.zeros((), tl.float64)
    for first in range(0, parts, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(dots + sample * parts + at, at < parts, 0.0).to(tl.float64), 0)
    tl.store(out + sample * 3 + PATH, total.to(tl.float32).to(out.dtype.element_ty))


@torch.library.triton_op("dynroute_triton::aggregate_backward", mutates_args={})
def aggregate_backward(
    grad: Tensor, down: Tensor | None, keep: Tensor | None, up: Tensor | None, alphas: Tensor | None, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad = nhwc(grad)
    n, c, h, w = grad.shape
    grad_alphas = grad.new_zeros((n if wanted[3] else 0, 3))
    grads = []
    for path, source, is_wanted in ((DOWN, down, wanted[0]), (KEEP, keep, wanted[1]), (UP, up, wanted[2])):
        is_small, with_dots = path == UP, wanted[3] and source is not None
        height, width = (h // 2, w // 2) if is_small else (h, w)
        out = nhwc_empty(grad, (n if is_wanted else 0, c, height, width))
        grads.append(out)
        if n == 0 or not (is_wanted or with_dots):
            continue
        cut = configs.find("aggregate", c, grad.dtype)
        grid = triton.cdiv(height * width, cut.block_m), triton.cdiv(c, cut.block_n)
        dots = torch.empty((n, grid[0] * grid[1]), dtype=torch.float32, device=grad.device) if with_dots else None
        wrapped(backward_kernel)[grid[0], grid[1], n](
            grad, nhwc(source) if source is not None else grad, alphas.contiguous() if alphas is not None else grad,
            out if is_wanted else grad, dots if dots is not None else grad, h, w, c, height * width, PATH=path,
            SMALL=is_small, HAS_ALPHAS=alphas is not None, HAS_OUT=is_wanted, HAS_DOTS=with_dots, **cut.tile(),
        )  # fmt: skip
        if dots is not None:
            wrapped(alphas_kernel)[(n,)](dots, grad_alphas, dots.shape[1], PATH=path, BLOCK=128)
    return grads[0], grads[1], grads[2], grad_alphas
