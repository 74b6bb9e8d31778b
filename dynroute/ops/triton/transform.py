"""`transform` in Triton: ReLU -> 1x1 product -> scale and shift -> ReLU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.registration import nhwc_empty
from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import check, nhwc, strided, wrapped
from dynroute.ops.triton.pieces import affine, product, relu, weights


@triton.jit
def transform_tile(
    image, weight, scale, shift, pixel, column, width, out_width, pixels, channels, out_channels, stride,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_M, BLOCK_N]: output pixels of an image times channels; the product in steps of BLOCK_K."""
    row = (pixel // out_width * stride * width + pixel % out_width * stride) * channels
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        a = tl.load(image + (row[:, None] + step[None, :]), (pixel < pixels)[:, None] & (step < channels)[None, :], 0.0)
        if WIDE:  # the interpreter compares bfloat16 by its bits
            a = a.to(tl.float32)
        b = weights(weight, column, step, out_channels, channels)
        total = product(relu(a).to(b.dtype), b, total, WIDE)
    return relu(affine(total, scale, shift, column, column < out_channels))


@triton.jit
def transform_kernel(
    x, weight, scale, shift, open, out,
    height, width, out_width, pixels, channels, out_channels, stride,
    HAS_MASK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_M output pixels of a sample times BLOCK_N channels."""
    sample = tl.program_id(2).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (pixel < pixels)[:, None] & (column < out_channels)[None, :]
    to = out + sample * pixels * out_channels + (pixel[:, None] * out_channels + column[None, :])
    if HAS_MASK:
        if tl.load(open + sample) == 0:
            tl.store(to, tl.zeros((BLOCK_M, BLOCK_N), to.dtype.element_ty), inside)
            return
    total = transform_tile(
        x + sample * height * width * channels, weight, scale, shift, pixel, column,
        width, out_width, pixels, channels, out_channels, stride, BLOCK_M, BLOCK_N, BLOCK_K, WIDE,
    )  # fmt: skip
    tl.store(to, total.to(to.dtype.element_ty), inside)


@torch.library.triton_op("dynroute_triton::transform", mutates_args={})
def transform(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, open: Tensor | None, stride: int) -> Tensor:
    n, c, h, w = x.shape
    check(stride in (1, 2), "transform", "stride", "1 or 2", stride)
    check(weight.shape[1:] == (c, 1, 1), "transform", "weight", f"[Cout, {c}, 1, 1]", list(weight.shape))
    out_c, out_h, out_w = weight.shape[0], strided(h, stride), strided(w, stride)
    out = nhwc_empty(x, (n, out_c, out_h, out_w))
    if out.numel() == 0:
        return out
    cut = configs.find("transform", c, x.dtype)
    pixels = out_h * out_w
    grid = (triton.cdiv(pixels, cut.block_m), triton.cdiv(out_c, cut.block_n), n)
    wrapped(transform_kernel)[grid](
        nhwc(x), weight.contiguous(), scale, shift, open if open is not None else scale, out, h, w, out_w, pixels, c,
        out_c, stride, HAS_MASK=open is not None, **cut.product(),
    )  # fmt: skip
    return out
