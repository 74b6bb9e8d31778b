"""`sepconv` in Triton: stages of depthwise 3x3 -> 1x1 product -> scale and shift, a launch each."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.registration import nhwc_empty
from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import by_taps, check, nhwc, strided, wrapped
from dynroute.ops.triton.pieces import affine, both, product, relu, weights


@triton.jit
def sepconv_tile(
    image, depthwise, pointwise, scale, shift, pixel, column,
    height, width, out_width, pixels, channels, out_channels, stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_M, BLOCK_N], a stage's output before anything is added: output pixels of an image times channels.
    The depthwise, of weights [9, channels], is made on the way into the product, and lies nowhere else."""
    y0, x0 = pixel // out_width * stride - 1, pixel % out_width * stride - 1
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        even = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        odd = even
        for tap in tl.static_range(9):
            y, at = y0 + tap // 3, x0 + tap % 3
            is_map = (pixel < pixels) & (y >= 0) & (y < height) & (at >= 0) & (at < width)
            value = tl.load(
                image + ((y * width + at)[:, None] * channels + step[None, :]),
                is_map[:, None] & (step < channels)[None, :], 0.0,
            )  # fmt: skip
            by = tl.load(depthwise + tap * channels + step, step < channels, 0.0)
            part = value.to(tl.float32) * by.to(tl.float32)[None, :]
            if tap % 2 == 0:
                even += part
            else:
                odd += part
        b = weights(pointwise, column, step, out_channels, channels)
        total = product(both(even, odd).to(b.dtype), b, total, WIDE)
    return affine(total, scale, shift, column, column < out_channels)


@triton.jit
def sepconv_kernel(
    x, depthwise, pointwise, scale, shift, residual, open, out,
    height, width, out_width, pixels, channels, out_channels, stride,
    HAS_MASK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M output pixels of a sample times BLOCK_N channels."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (pixel < pixels)[:, None] & (column < out_channels)[None, :]
    first = sample * pixels * out_channels
    place = pixel[:, None] * out_channels + column[None, :]
    if HAS_MASK:
        if tl.load(open + sample) == 0:
            tl.store(out + first + place, tl.zeros((BLOCK_M, BLOCK_N), out.dtype.element_ty), inside)
            return
    total = sepconv_tile(
        x + sample * height * width * channels, depthwise, pointwise, scale, shift, pixel, column,
        height, width, out_width, pixels, channels, out_channels, stride, BLOCK_M, BLOCK_N, BLOCK_K, WIDE,
    )  # fmt: skip
    if HAS_RESIDUAL:
        total = total + tl.load(residual + first + place, inside, 0.0).to(tl.float32)
    if RELU:
        total = relu(total)
    tl.store(out + first + place, total.to(out.dtype.element_ty), inside)


@torch.library.triton_op("dynroute_triton::sepconv", mutates_args={})
def sepconv(
    x: Tensor,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    scale: list[Tensor],
    shift: list[Tensor],
    open: Tensor | None,
    stride: int,
    residual: bool,
    final_relu: bool,
) -> Tensor:
    stages, x = len(depthwise), nhwc(x)
    check(1 <= stages <= 3, "sepconv", "depthwise", "1 to 3 weights", stages)
    check(stride in (1, 2), "sepconv", "stride", "1 or 2", stride)
    y = x
    for k in range(stages):
        n, c, h, w = y.shape
        check(pointwise[k].shape[1] == c, "sepconv", "pointwise", f"[Cout, {c}, 1, 1]", list(pointwise[k].shape))
        last, step = k == stages - 1, stride if k == 0 else 1
        out_c, out_h, out_w = pointwise[k].shape[0], strided(h, step), strided(w, step)
        out = nhwc_empty(x, (n, out_c, out_h, out_w))
        if out.numel():
            cut = configs.find("sepconv", c, x.dtype)
            pixels = out_h * out_w
            grid = (triton.cdiv(pixels, cut.block_m), triton.cdiv(out_c, cut.block_n), n)
            wrapped(sepconv_kernel)[grid](
                y, by_taps(depthwise[k]), pointwise[k].contiguous(), scale[k], shift[k], x,
                open if open is not None else scale[k], out, h, w, out_w, pixels, c, out_c, step,
                HAS_MASK=open is not None, HAS_RESIDUAL=residual and last, RELU=final_relu or not last, **cut.product(),
            )  # fmt: skip
        y = out
    return y
