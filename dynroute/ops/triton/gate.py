"""`gate` in Triton: [x1/4 ->] 1x1 product -> scale and shift -> ReLU -> mean over the map -> 1x1 -> activation.

Two launches: sums of tiles of pixels, which the second adds up in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import check, nhwc, wrapped
from dynroute.ops.triton.pieces import affine, product, relu, weights

ACTIVATIONS = ("tanh", "sigmoid", "softmax")


@triton.jit
def pooled_tile(
    image, weight, scale, shift, pixel, column, width, small_width, pixels, channels, out_channels,
    SMALL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_N]: the sum over pixels of an image, or of its x1/4, of what is pooled."""
    if SMALL:  # the mean of the four pixels around the small one's centre
        first = (pixel // small_width * 4 + 1) * width + pixel % small_width * 4 + 1
    else:
        first = pixel
    row = first * channels
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, channels, BLOCK_K):
        step = k + tl.arange(0, BLOCK_K)
        is_a = (pixel < pixels)[:, None] & (step < channels)[None, :]
        at = image + (row[:, None] + step[None, :])
        a = tl.load(at, is_a, 0.0)
        if SMALL:
            a = a.to(tl.float32) + tl.load(at + channels, is_a, 0.0).to(tl.float32)
            below = tl.load(at + width * channels, is_a, 0.0).to(tl.float32)
            a = 0.25 * (a + (below + tl.load(at + (width + 1) * channels, is_a, 0.0).to(tl.float32)))
        b = weights(weight, column, step, out_channels, channels)
        total = product(a.to(b.dtype), b, total, WIDE)
    total = affine(total, scale, shift, column, column < out_channels)
    return tl.sum(tl.where((pixel < pixels)[:, None], relu(total), 0.0), 0)


@triton.jit
def activated(logits, there, ACTIVATION: tl.constexpr):
    """Alphas out of logits, of those that are there."""
    if ACTIVATION == "tanh":
        value = relu(2.0 * tl.sigmoid(2.0 * logits) - 1.0)
    elif ACTIVATION == "sigmoid":
        value = tl.sigmoid(logits)
    else:
        value = tl.exp(logits - tl.max(tl.where(there, logits, float("-inf")), 0))
        value = value / tl.sum(tl.where(there, value, 0.0), 0)
    return value


@triton.jit
def alphas_of(
    sums, fc_weight, fc_bias, lane, there, pixels, tiles, channels, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """float32 [lanes]: a sample's alphas out of its tiles' sums [tiles, channels]; nothing of lanes not there."""
    logits = tl.load(fc_bias + lane, there, 0.0).to(tl.float32)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for tile in range(tiles):
            total += tl.load(sums + tile * channels + channel, channel < channels, 0.0)
        by = tl.load(
            fc_weight + lane[:, None] * channels + channel[None, :], there[:, None] & (channel < channels)[None, :], 0.0
        ).to(tl.float32)
        logits += tl.sum(by * (total / pixels)[None, :], 1)
    return activated(logits, there, ACTIVATION)


@triton.jit
def gate_pool_kernel(
    x, weight, scale, shift, present, sums,
    height, width, small_width, pixels, tiles, channels, out_channels,
    HAS_MASK: tl.constexpr, SMALL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The sum over a tile of BLOCK_M pixels of what is pooled, of BLOCK_N channels."""
    sample, tile = tl.program_id(2).to(tl.int64), tl.program_id(0)
    pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if HAS_MASK:
        if tl.load(present + sample) == 0:
            return
    total = pooled_tile(
        x + sample * height * width * channels, weight, scale, shift, pixel, column,
        width, small_width, pixels, channels, out_channels, SMALL, BLOCK_M, BLOCK_N, BLOCK_K, WIDE,
    )  # fmt: skip
    tl.store(sums + (sample * tiles + tile) * out_channels + column, total, column < out_channels)


@triton.jit
def gate_end_kernel(
    sums, fc_weight, fc_bias, present, alphas, pixels, tiles, channels,
    HAS_MASK: tl.constexpr, GATES: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A sample's alphas: GATES logits out of its mean, and what the activation makes of them."""
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 4)  # a power of two that has room for the gates
    there = lane < GATES
    to = alphas + sample * GATES + lane
    if HAS_MASK:
        if tl.load(present + sample) == 0:
            tl.store(to, tl.zeros((4,), alphas.dtype.element_ty), there)
            return
    value = alphas_of(
        sums + sample * tiles * channels, fc_weight, fc_bias, lane, there, pixels, tiles, channels, ACTIVATION, BLOCK
    )
    tl.store(to, value.to(alphas.dtype.element_ty), there)


@torch.library.triton_op("dynroute_triton::gate", mutates_args={})
def gate(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    activation: str,
    small: bool,
    present: Tensor | None,
) -> Tensor:
    n, c, h, w = x.shape
    m, gates = weight.shape[0], fc_weight.shape[0]
    check(activation in ACTIVATIONS, "gate", "activation", "'tanh', 'sigmoid' or 'softmax'", repr(activation))
    check(weight.shape[1:] == (c, 1, 1), "gate", "weight", f"[M, {c}, 1, 1]", list(weight.shape))
    check(fc_weight.shape[1] == m and gates <= 4, "gate", "fc_weight", f"[at most 4, {m}, 1, 1]", list(fc_weight.shape))
    check(not small or min(h, w) >= 4, "gate", "x", "height and width of at least 4", [h, w])
    alphas = x.new_empty((n, gates))
    if n == 0:
        return alphas
    small_h, small_w = (h // 4, w // 4) if small else (h, w)
    cut, pixels = configs.find("gate", c, x.dtype), small_h * small_w
    tiles = triton.cdiv(pixels, cut.block_m)
    sums = torch.empty((n, tiles, m), dtype=torch.float32, device=x.device)
    mask = present if present is not None else scale
    wrapped(gate_pool_kernel)[(tiles, triton.cdiv(m, cut.block_n), n)](
        nhwc(x), weight.contiguous(), scale, shift, mask, sums, h, w, small_w, pixels, tiles, c, m,
        HAS_MASK=present is not None, SMALL=small, **cut.product(),
    )  # fmt: skip
    wrapped(gate_end_kernel)[(n,)](
        sums, fc_weight.contiguous(), fc_bias, mask, alphas, pixels, tiles, m,
        HAS_MASK=present is not None, GATES=gates, ACTIVATION=activation, BLOCK=64,
    )  # fmt: skip
    return alphas
