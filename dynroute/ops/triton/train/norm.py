"""BatchNorm's statistics out of what tiles left, and what its backward subtracts; with other processes' if need be."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dynroute.ops import synchronise
from dynroute.ops.triton.launch import wrapped
from dynroute.ops.triton.train.samples import Samples, how_many
from dynroute.ops.triton.train.source import Norm

CHANNELS, ROWS = 16, 64  # of a program's tiles' sums at a time


class Tiles(NamedTuple):
    """Sums of each tile of pixels, sample by sample as they are listed: float32 [N * tiles, 2, C], or, of statistics,
    [N * tiles, 3, C] with a pivot before them."""

    sums: Tensor
    tiles: int
    pixels: int
    block_m: int


@triton.jit
def norm_kernel(
    sums, samples, running_mean, running_var, stats, found, n, pixels, tiles, channels, processes, eps,
    ALL: tl.constexpr, MODE: tl.constexpr, BLOCK_M: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """[3, C] mean, inverse deviation, unbiased variance, in double. Of "frozen": the running ones', as where nobody has
    a pixel; of "tiles": from the tiles' pivots and sums; "found" stores count, means and squares instead, [1 + 2C], and
    "joint" goes on from those of all processes."""
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = column < channels
    row = tl.arange(0, ROWS)
    count = tl.zeros((), tl.float64)
    mean = tl.zeros((CHANNELS,), tl.float64)
    squares = tl.zeros((CHANNELS,), tl.float64)
    if MODE == "tiles" or MODE == "found":
        rows = how_many(samples, n, ALL) * tiles
        count += (how_many(samples, n, ALL) * pixels).to(tl.float64)
        for first in range(0, rows, ROWS):
            at = first + row
            held = tl.minimum(pixels - at % tiles * BLOCK_M, BLOCK_M).to(tl.float64)[:, None]
            inside = (at < rows)[:, None] & there[None, :]
            place = sums + at[:, None] * 3 * channels + column[None, :]
            mean += tl.sum(held * tl.load(place, inside, 0.0) + tl.load(place + channels, inside, 0.0), 0)
        mean = mean / tl.maximum(count, 1.0)
        for first in range(0, rows, ROWS):
            at = first + row
            held = tl.minimum(pixels - at % tiles * BLOCK_M, BLOCK_M).to(tl.float64)[:, None]
            inside = (at < rows)[:, None] & there[None, :]
            place = sums + at[:, None] * 3 * channels + column[None, :]
            apart = tl.where(inside, tl.load(place, inside, 0.0).to(tl.float64) - mean[None, :], 0.0)
            sum_apart = tl.load(place + channels, inside, 0.0).to(tl.float64)
            squares += tl.sum(apart * (held * apart + 2.0 * sum_apart) + tl.load(place + 2 * channels, inside, 0.0), 0)
    if MODE == "joint":  # Chan, Golub, LeVeque 1983
        for process in range(processes):
            of = found + process * (1 + 2 * channels)
            its_count = tl.load(of)
            share = its_count / tl.maximum(count + its_count, 1.0)
            apart = tl.load(of + 1 + column, there, 0.0) - mean
            squares += tl.load(of + 1 + channels + column, there, 0.0) + apart * apart * count * share
            mean += apart * share
            count += its_count
    if MODE == "found":
        tl.store(found, count)
        tl.store(found + 1 + column, mean, there)
        tl.store(found + 1 + channels + column, squares, there)
    else:
        some = tl.where(count > 0.0, 1, 0) != 0
        variance = squares / tl.maximum(count, 1.0)
        unbiased = squares / tl.maximum(count - 1.0, 1.0)
        running = tl.load(running_var + column, there, 0.0).to(tl.float64)
        variance = tl.where(some, variance, running)
        unbiased = tl.where(some, unbiased, running)
        mean = tl.where(some, mean, tl.load(running_mean + column, there, 0.0).to(tl.float64))
        tl.store(stats + column, mean.to(tl.float32), there)
        tl.store(stats + channels + column, (1.0 / tl.sqrt(variance + eps)).to(tl.float32), there)
        tl.store(stats + 2 * channels + column, unbiased.to(tl.float32), there)


def statistics(
    of: Tiles | None, samples: Samples, running_mean: Tensor, running_var: Tensor, stats: Tensor, group: str, eps: float
) -> None:
    """Writes a BatchNorm's `stats` [3, C], out of what its tiles left, or (None: frozen) the running ones."""
    channels = stats.shape[1]
    tiles = Tiles(stats, 1, 1, 1) if of is None else of

    def run(mode: str, found: Tensor, processes: int = 1) -> None:
        wrapped(norm_kernel)[(triton.cdiv(channels, CHANNELS),)](
            sums=tiles.sums, running_mean=running_mean, running_var=running_var, stats=stats, found=found,
            pixels=tiles.pixels, tiles=tiles.tiles, channels=channels, processes=processes, eps=eps, MODE=mode,
            BLOCK_M=tiles.block_m, CHANNELS=CHANNELS, ROWS=ROWS, **samples.arguments(stats),
        )  # fmt: skip

    if of is None or not group:
        run("frozen" if of is None else "tiles", stats)
        return
    mine = torch.empty(1 + 2 * channels, dtype=torch.float64, device=stats.device)
    run("found", mine)
    everyone = synchronise.gathered(mine, group)
    run("joint", everyone, everyone.shape[0])


@triton.jit
def norm_backward_kernel(
    sums, samples, stats, grad_gamma, grad_beta, means, found, n, pixels, tiles, channels, processes,
    ALL: tl.constexpr, MODE: tl.constexpr, FROZEN: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Gradients of gamma and beta, of the own samples, and `means` of `raw_gradient`; modes as above. The tiles' sums
    are of the gradient, and of its product with what is normalised."""
    column = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = column < channels
    row = tl.arange(0, ROWS)
    count = tl.zeros((), tl.float64)
    of_beta = tl.zeros((CHANNELS,), tl.float64)
    of_gamma = tl.zeros((CHANNELS,), tl.float64)
    if MODE == "joint":
        for process in range(processes):
            of = found + process * (1 + 2 * channels)
            count += tl.load(of)
            of_beta += tl.load(of + 1 + column, there, 0.0)
            of_gamma += tl.load(of + 1 + channels + column, there, 0.0)
    else:
        rows = how_many(samples, n, ALL) * tiles
        count += (how_many(samples, n, ALL) * pixels).to(tl.float64)
        for first in range(0, rows, ROWS):
            at = first + row
            inside = (at < rows)[:, None] & there[None, :]
            place = sums + at[:, None] * 2 * channels + column[None, :]
            of_beta += tl.sum(tl.load(place, inside, 0.0).to(tl.float64), 0)
            of_gamma += tl.sum(tl.load(place + channels, inside, 0.0).to(tl.float64), 0)
        tl.store(grad_beta + column, of_beta.to(tl.float32), there)
        tl.store(grad_gamma + column, of_gamma.to(tl.float32), there)
    if MODE == "found":
        tl.store(found, count)
        tl.store(found + 1 + column, of_beta, there)
        tl.store(found + 1 + channels + column, of_gamma, there)
    else:
        if FROZEN:
            of_beta = of_beta * 0.0
            of_gamma = of_gamma * 0.0
        invstd = tl.load(stats + channels + column, there, 0.0)
        tl.store(means + column, (of_beta / tl.maximum(count, 1.0)).to(tl.float32), there)
        tl.store(means + channels + column, (of_gamma / tl.maximum(count, 1.0) * invstd).to(tl.float32), there)


def backward(
    of: Tiles, samples: Samples, norm: Norm, grad_gamma: Tensor, grad_beta: Tensor, frozen: bool, group: str
) -> Tensor:
    """Writes gradients of gamma and beta; returns `means` [2, C] of `raw_gradient`."""
    channels = norm.stats.shape[1]
    means = norm.stats.new_empty((2, channels))

    def run(mode: str, found: Tensor, processes: int = 1) -> None:
        wrapped(norm_backward_kernel)[(triton.cdiv(channels, CHANNELS),)](
            sums=of.sums, stats=norm.stats, grad_gamma=grad_gamma, grad_beta=grad_beta, means=means, found=found,
            pixels=of.pixels, tiles=of.tiles, channels=channels, processes=processes, MODE=mode, FROZEN=frozen,
            CHANNELS=CHANNELS, ROWS=ROWS, **samples.arguments(means),
        )  # fmt: skip

    if frozen or not group:
        run("tiles", means)
        return means
    mine = torch.empty(1 + 2 * channels, dtype=torch.float64, device=means.device)
    run("found", mine)
    everyone = synchronise.gathered(mine, group)
    run("joint", everyone, everyone.shape[0])
    return means


@triton.jit
def reduce_kernel(
    parts, out, samples, n, of_each, size, rows_of_out, columns,
    ALL: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sum of parts, in double, in order: of_each of every sample that takes part; turned, if a part has columns."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    rows = how_many(samples, n, ALL) * of_each
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, rows, ROWS):
        row = first + tl.arange(0, ROWS)
        place = row.to(tl.int64)[:, None] * size + at[None, :]
        total += tl.sum(tl.load(parts + place, (row < rows)[:, None] & there[None, :], 0.0).to(tl.float64), 0)
    tl.store(out + at % columns * rows_of_out + at // columns, total.to(tl.float32), there)


def reduce(parts: Tensor, out: Tensor, samples: Samples, of_each: int, columns: int = 1) -> None:
    """Writes the sum of parts [N * of_each, size] into `out`, those of the samples that take part.

    columns: a part is a matrix of so many, and `out` its transpose.
    """
    size = out.numel()
    wrapped(reduce_kernel)[(triton.cdiv(size, 64),)](
        parts=parts, out=out, of_each=of_each, size=size, rows_of_out=size // columns, columns=columns, BLOCK=64,
        ROWS=32, **samples.arguments(out),
    )  # fmt: skip
