"""`gate_train` in Triton: [x1/4 ->] 1x1 -> BatchNorm -> ReLU -> mean over the map -> 1x1 -> activation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops.triton import configs
from dynroute.ops.triton.gate import ACTIVATIONS, activated
from dynroute.ops.triton.launch import check, nhwc, wrapped
from dynroute.ops.triton.pieces import relu, tile_of
from dynroute.ops.triton.train import norm
from dynroute.ops.triton.train.backward import outer, product_backward
from dynroute.ops.triton.train.chain import Flat
from dynroute.ops.triton.train.forward import forward
from dynroute.ops.triton.train.norm import Tiles
from dynroute.ops.triton.train.samples import Samples
from dynroute.ops.triton.train.source import Gradient, Norm, Source, affine_of

BLOCK, ROWS = 64, 16  # channels and tiles' sums at a time


@triton.jit
def pool_kernel(
    raw, gamma, beta, stats, sums, pixels, tiles, channels, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):  # fmt: skip
    """Of a tile's pixels, per channel: the sum of what is pooled, how many of them the ReLU lets through, and the sum
    there of raw less its mean."""
    sample, tile = tl.program_id(2).to(tl.int64), tl.program_id(0)
    pixel, column, is_pixel, there = tile_of(pixels, channels, BLOCK_M, BLOCK_N)
    inside = is_pixel[:, None] & there[None, :]
    scale, shift, mean, _invstd = affine_of(gamma, beta, stats, column, there, channels)
    at = sample * pixels * channels + (pixel[:, None] * channels + column[None, :])
    value = tl.load(raw + at, inside, 0.0).to(tl.float32)
    made = tl.where(inside, value * scale[None, :] + shift[None, :], 0.0)
    passes = tl.where(made > 0.0, 1.0, 0.0)
    to = sums + (sample * tiles + tile) * 3 * channels + column
    tl.store(to, tl.sum(relu(made), 0), there)
    tl.store(to + channels, tl.sum(passes, 0), there)
    tl.store(to + 2 * channels, tl.sum(passes * (value - mean[None, :]), 0), there)


@triton.jit
def end_kernel(
    sums, fc_weight, fc_bias, columns, alphas, pool, pixels, tiles, channels,
    GATES: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """A sample's pool and alphas; sums in double, in order."""
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 4)
    there = lane < GATES
    logits = tl.load(fc_bias + lane, there, 0.0).to(tl.float64)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        is_channel = channel < channels
        pooled = tl.zeros((BLOCK,), tl.float64)
        above = tl.zeros((BLOCK,), tl.float64)
        apart = tl.zeros((BLOCK,), tl.float64)
        for tile in range(0, tiles, ROWS):
            row = tile + tl.arange(0, ROWS)
            inside = (row < tiles)[:, None] & is_channel[None, :]
            place = sums + (sample * tiles + row)[:, None] * 3 * channels + channel[None, :]
            pooled += tl.sum(tl.load(place, inside, 0.0).to(tl.float64), 0)
            above += tl.sum(tl.load(place + channels, inside, 0.0).to(tl.float64), 0)
            apart += tl.sum(tl.load(place + 2 * channels, inside, 0.0).to(tl.float64), 0)
        pooled = (pooled / pixels).to(tl.float32)
        to = pool + sample * 3 * channels + channel
        tl.store(to, pooled, is_channel)
        tl.store(to + channels, above.to(tl.float32), is_channel)
        tl.store(to + 2 * channels, apart.to(tl.float32), is_channel)
        weight = tl.load(
            fc_weight + lane[:, None] * channels + channel[None, :], there[:, None] & is_channel[None, :], 0.0
        )  # fmt: skip
        logits += tl.sum(weight.to(tl.float64) * pooled[None, :], 1)
    value = activated(logits.to(tl.float32), there, ACTIVATION)
    tl.store(alphas + sample * 3 + (columns >> (2 * lane)) % 4, value, there)


@triton.jit
def begin_kernel(
    grad, alphas, columns, fc_weight, stats, pool, of_pixels, sums, parts, pixels, channels,
    GATES: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """From a sample's alphas' gradients to that of every pixel that the ReLU lets through, [N, C]; the sums that
    BatchNorm's backward wants, which the pool has; the sample's part of the gradients of fc's weight and bias."""
    sample = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 4)
    there = lane < GATES
    place = sample * 3 + (columns >> (2 * lane)) % 4
    alpha = tl.load(alphas + place, there, 0.0).to(tl.float32)
    of = tl.load(grad + place, there, 0.0).to(tl.float32)
    if ACTIVATION == "tanh":
        of = tl.where(alpha > 0.0, of * (1.0 - alpha * alpha), 0.0)
    elif ACTIVATION == "sigmoid":
        of = of * alpha * (1.0 - alpha)
    else:
        of = alpha * (of - tl.sum(alpha * of, 0))
    part = parts + sample * GATES * (channels + 1)
    tl.store(part + GATES * channels + lane, of, there)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        is_channel = channel < channels
        both = there[:, None] & is_channel[None, :]
        from_pool = pool + sample * 3 * channels + channel
        pooled = tl.load(from_pool, is_channel, 0.0)
        tl.store(part + lane[:, None] * channels + channel[None, :], of[:, None] * pooled[None, :], both)
        weight = tl.load(fc_weight + lane[:, None] * channels + channel[None, :], both, 0.0)
        of_pixel = tl.sum(weight * of[:, None], 0) / pixels
        tl.store(of_pixels + sample * channels + channel, of_pixel, is_channel)
        invstd = tl.load(stats + channels + channel, is_channel, 0.0)
        to = sums + sample * 2 * channels + channel
        tl.store(to, of_pixel * tl.load(from_pool + channels, is_channel, 0.0), is_channel)
        tl.store(
            to + channels, of_pixel * invstd * tl.load(from_pool + 2 * channels, is_channel, 0.0), is_channel
        )  # fmt: skip


def _packed(columns: list[int]) -> int:
    """Two bits for each gate's column: a number needs no memory of the device."""
    return sum(column << 2 * gate for gate, column in enumerate(columns))


@torch.library.triton_op("dynroute_triton::gate_train", mutates_args={})
def gate_train(
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    fc_weight: Tensor,
    fc_bias: Tensor,
    activation: str,
    columns: list[int],
    small: bool,
    frozen: bool,
    group: str,
    eps: float,
    narrow: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, op = nhwc(x), "gate_train"
    n, c, h, w = x.shape
    m, gates = weight.shape[0], fc_weight.shape[0]
    check(activation in ACTIVATIONS, op, "activation", "'tanh', 'sigmoid' or 'softmax'", repr(activation))
    check(weight.shape[1:] == (c, 1, 1), op, "weight", f"[M, {c}, 1, 1]", list(weight.shape))
    check(fc_weight.shape[1] == m and gates <= 3, op, "fc_weight", f"[at most 3, {m}, 1, 1]", list(fc_weight.shape))
    is_apart = sorted(set(columns)) == sorted(columns) and set(columns) <= {0, 1, 2}
    check(len(columns) == gates and is_apart, op, "columns", f"{gates} different ones of 0, 1, 2", columns)
    check(not small or min(h, w) >= 4, op, "x", "height and width of at least 4", [h, w])
    check(not narrow, op, "narrow", "False: maps are of 16 bits themselves here", narrow)
    samples = Samples(n)
    height, width = (h // 4, w // 4) if small else (h, w)
    raw, stats = samples.new_map(x, (n, m, height, width)), weight.new_empty((1, 3, m))
    tiles = forward(Source("quarter" if small else "x", x), None, weight, raw, samples, 1, not frozen)
    norm.statistics(tiles, samples, running_mean, running_var, stats[0], group, eps)
    alphas, pool = weight.new_zeros((n, 3)), weight.new_empty((n, 3, m))
    if n:
        cut, pixels = configs.find("train_map", m, x.dtype), height * width
        parts = triton.cdiv(pixels, cut.block_m)
        sums = weight.new_empty((n, parts, 3, m))
        wrapped(pool_kernel)[(parts, triton.cdiv(m, cut.block_n), n)](
            raw, gamma, beta, stats, sums, pixels, parts, m, **cut.tile()
        )
        wrapped(end_kernel)[(n,)](
            sums, fc_weight.contiguous(), fc_bias, _packed(columns), alphas, pool, pixels, parts, m,
            GATES=gates, ACTIVATION=activation, BLOCK=BLOCK, ROWS=ROWS,
        )  # fmt: skip
    return alphas, raw, stats, pool


@torch.library.triton_op("dynroute_triton::gate_train_backward", mutates_args={})
def gate_train_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    fc_weight: Tensor,
    alphas: Tensor,
    raw: Tensor,
    stats: Tensor,
    pool: Tensor,
    activation: str,
    columns: list[int],
    small: bool,
    frozen: bool,
    group: str,
    narrow: bool,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    x = nhwc(x)
    (n, c, h, w), m, gates = x.shape, weight.shape[0], fc_weight.shape[0]
    pixels, samples, of = raw.shape[2] * raw.shape[3], Samples(n), Norm(gamma, beta, stats[0])
    of_products = [weight] if wanted[1] else []
    flat = Flat(weight, of_products, [gamma, beta, fc_weight, fc_weight[:, 0, 0, 0]])
    to_products, (to_gamma, to_beta) = flat.take(of_products), flat.take([gamma, beta])
    of_fc = flat.take([fc_weight.new_empty(gates * (m + 1))])[0]
    of_pixels, sums = weight.new_empty((n, m)), weight.new_empty((n, 2, m))
    parts = weight.new_empty((n, gates * (m + 1)))
    if n:
        wrapped(begin_kernel)[(n,)](
            grad.contiguous(), alphas, _packed(columns), fc_weight.contiguous(), stats, pool, of_pixels, sums, parts,
            pixels, m, GATES=gates, ACTIVATION=activation, BLOCK=BLOCK,
        )  # fmt: skip
    norm.reduce(parts, of_fc, samples, 1)
    means = norm.backward(Tiles(sums, 1, pixels, pixels), samples, of, to_gamma, to_beta, frozen, group)
    gradient, kind = Gradient(of_pixels, raw, of, means, pooled=True), "quarter" if small else "x"
    if wanted[1]:
        outer(gradient, Source(kind, x), None, samples, 1, to_products[0])
    if not wanted[0]:
        return x.new_empty((0, c, h, w)), flat.all
    return product_backward(gradient, weight, samples, h, w, kind=kind), flat.all
