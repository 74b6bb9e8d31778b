"""The numbers of the operators' pictures, from the code: constants of the C++ headers, Triton's cuts, and what follows.

The functions say in Python what the named one in C++ says, of float16 on CUDA and of float32 on the CPU.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import torch

from dynroute.ops.triton import configs
from dynroute.ops.triton.cuts import Cut, Key

ROOT = Path(__file__).parents[2]
H, W, C = 64, 128, 64  # of the map that is drawn: scale 1/4 of an image of 256 x 512
N = 2  # in training
MAP = (W, H)
SETTING = (
    f"C = {C}, a map of {H} \N{MULTIPLICATION SIGN} {W}. CUDA and Triton in float16, the CPU in float32 with AVX-512."
)
ARCH = 90  # Triton's: sm_90
HALF, FLOAT, DOUBLE = 2, 4, 8  # bytes
L1, L2 = 48 << 10, 2 << 20  # the caches that the planner is taken to have read


@cache
def constant(file: str, name: str) -> int:
    """A `constexpr int` of a file of csrc. Raises ValueError if it is not there as a number or a shift."""
    text = (ROOT / "csrc" / file).read_text()
    found = re.search(rf"constexpr (?:int|int64_t)\b[^;]*?\b{name} = (\d+)(?: << (\d+))?\s*[,;]", text)
    if found is None:
        raise ValueError(f"csrc/{file}: no constexpr int {name} = number")
    return int(found[1]) << int(found[2] or 0)


@cache
def number(file: str, name: str) -> int:
    """A number that a Python file begins a line with. Raises ValueError if it is not there."""
    found = re.search(rf"^{name} = (\d+)\b", (ROOT / file).read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{file}: no {name} = number")
    return int(found[1])


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


SEPCONV, GEMM_THREADS = "cuda/kernels/sepconv.h", constant("cuda/kernels/params.h", "kThreads")
CHUNK_CHANNELS = constant(SEPCONV, "kSepconvChannels")
SIDE = constant(SEPCONV, "kSepconvWide")  # of a tile; in 16 bits it is as high


def a_bytes(pixels: int, k: int) -> int:
    """A tile of pixels in shared memory, rows 8 values apart more than they are long."""
    return pixels * (k + 8) * HALF


def halo_pixels(stride: int = 1) -> int:
    return ((SIDE - 1) * stride + 3) ** 2


def halo_bytes(stride: int = 1) -> int:
    """A chunk of the halo with its taps (`sepconv_halo_bytes`)."""
    return CHUNK_CHANNELS * (halo_pixels(stride) * HALF + 9 * FLOAT)


def ring_bytes(width: int) -> int:
    """`least_ring_bytes`"""
    return (constant("cuda/kernels/params.h", "kLeastAhead") + 1) * width * 64


def gate_ring_bytes() -> int:
    """Chunks of the gate's weights, as many as a ring has where shared memory has room for them."""
    file = "cuda/kernels/aggregate_route.h"
    return constant(file, "kMaxChunks") * constant(file, "kAggregateChunk")


TRAIN_TOTALS = (2 * 8 + 1) * 128 * FLOAT  # bytes of sums of rows of warps, and of pivots (`kTrainTotals`)


def train_depthwise_bytes() -> int:
    """Shared memory of `train_depthwise`: the gradient's halo, or in its place what warps add up; and the taps."""
    params, halo = "cuda/kernels/params_train.h", constant("cuda/kernels/train_shapes.h", "kTapsTile") + 2
    warps, quantities = constant(params, "kTrainThreads") // 32, constant(params, "kDepthwiseRows")
    halo_bytes, sums = halo * halo * CHUNK_CHANNELS * HALF, quantities * warps * CHUNK_CHANNELS * FLOAT
    return max(halo_bytes, sums) + 9 * CHUNK_CHANNELS * FLOAT


def panel_row(k: int) -> int:
    """Bytes of a pixel's row of a panel (`panel_stride`)."""
    panel = constant("cpu/kernels/jobs.h", "kPanel")
    return (ceil_div(k, panel) + 1) * panel * FLOAT


def step_rows(stages: int = 2, l2: int = L2) -> int:
    """Rows that a fused sepconv makes at a time (`Planner::best`)."""
    row = W * C * FLOAT
    return min(max(l2 // 2 // (row * (3 if stages > 1 else 2)) - 3, 1), 8)


def train_band_rows(n: int, h: int) -> int:
    """`band_rows`, of training"""
    bands = max(1, min(h, ceil_div(constant("cpu/ops/train_chain.h", "kTasks"), n)))
    return ceil_div(h, bands)


def tile_columns(most: int) -> int:
    """Pixels of a tile of one row of the map (`for_tiles`), where no two rows fit."""
    return ceil_div(W, ceil_div(W, most)) if most < W else W


def cut(op: str) -> Cut:
    """Triton's cut at 64 channels of float16 for sm_90, as it is checked in."""
    return configs.checked_in(Key(op, C, torch.float16, ARCH))


def triton_shared(kernel: str, own: Cut) -> int | None:
    """Bytes of shared memory of a Triton kernel with this cut: static, of triton_static.json; None: not compiled so."""
    rows = json.loads((ROOT / "benchmarks/results/triton_static.json").read_text())["static"]["kernels"]
    tile = {"BLOCK_M": own.block_m, "BLOCK_N": own.block_n, "BLOCK_K": own.block_k, "num_warps": own.num_warps}
    for found in rows:
        is_it = found["kernel"] == kernel and found["arch"] == f"sm_{ARCH}"
        is_wide = {"x: *fp16/16", "channels: i32/16"} <= set(found["signature"].split(", "))
        if is_it and is_wide and tile.items() <= found["constants"].items():
            return int(found["shared_bytes"])
    return None


def loss_tiling(n: int, w: int, h: int, factor: int) -> tuple[int, int, int, int]:
    """`loss_tiling` where a thread has all classes: a task's low-resolution columns and rows; its full-size columns and
    the low-resolution ones that it reads."""
    gaps = GEMM_THREADS // factor
    across = ceil_div(32, gaps) * gaps
    tile = ceil_div(w, ceil_div(w, across - 1))
    tiles, rows = ceil_div(w, tile), 16
    while rows > 2 and n * tiles * ceil_div(h, rows) < constant("cuda/kernels/upsampled_loss.h", "kLossTasksWanted"):
        rows //= 2
    columns = min(gaps * factor, (tile + 1) * factor)
    return tile, rows, columns, columns // factor + 1
