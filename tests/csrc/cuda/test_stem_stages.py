"""csrc/cuda/kernels/stem_stages.cu on the emulator: values, edges, counted work, what it may not touch."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch import Tensor

from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES
from tests.support.cuda import structs
from tests.support.cuda.devices import H100
from tests.support.cuda.matrices import StageWeights
from tests.support.cuda.shapes import launch_shape

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")


def run(x: Tensor, weights: list[StageWeights], c: int, blocks: int, **options):
    """[n, h, w, width] -> [n, h_out, w_out, c], multiply-accumulates of the samples, statistics."""
    n, h, w, _ = x.shape
    h_out, w_out = -(-h // 2), -(-w // 2)
    out = torch.full((n, h_out, w_out, c), float("nan"), dtype=x.dtype)
    macs = np.full((n, 3), 7, np.int64)
    x_array, out_array = emulator.array(x), emulator.array(out)
    x_array.flags.writeable = False
    io = np.frombuffer(bytearray(bytes(structs.Io(sample_macs=macs.ctypes.data))), np.uint8)
    io.flags.writeable = False
    params = structs.StemStagesParams(
        io.ctypes.data, x_array.ctypes.data, out_array.ctypes.data,
        (ctypes.c_void_p * 2)(*(stage.arrays[0].ctypes.data for stage in weights)),
        (structs.Matrix * 2)(*(stage.matrix() for stage in weights)), n, h, w, h_out, w_out,
    )  # fmt: skip
    largest, threads, shared = launch_shape("stem_stages", params, x.dtype, H100)
    buffers = [io, macs, x_array, out_array, *(array for stage in weights for array in stage.arrays)]
    info = emulator.launch(
        "stem_stages", x.dtype, bytes(params), (min(blocks, largest), threads, shared), buffers, **options
    )
    return out, macs, info


def recomputed(side: int, tile: int) -> int:
    """Rows of the first stage that two tiles make: one at each border between tiles of `tile` results."""
    return -(-side // (2 * tile)) - 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "n, h, w, width, c",
    [(1, 1, 1, 8, 8), (2, 15, 31, 24, 16), (1, 17, 33, 64, 64), (2, 34, 18, 8, 64), (1, 63, 20, 32, 24)],
)
def test_values(n: int, h: int, w: int, width: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(h * w + c)
    weights = [StageWeights(width, width, dtype), StageWeights(width, c, dtype)]
    x = torch.randn(n, h, w, width).to(dtype)
    out, macs, _ = run(x, weights, c, 3, order=("fwd", "rev", "rand")[h % 3])
    between = weights[0].reference(x, 1, None, True).to(dtype)
    wanted = weights[1].reference(between, 2, None, True)
    # what lies between may be rounded to the other side than the reference's
    step = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
    assert (out.double() - wanted.double()).abs().max() <= 3 * step * wanted.double().abs().max()
    assert not out.isnan().any()
    first, second = width * (9 + width), width * (9 + c)
    own = h * w * first + -(-h // 2) * -(-w // 2) * second
    rows, columns = recomputed(h, 4 if dtype == torch.float32 else 8), recomputed(w, 8)
    halo = ((h + rows) * (w + columns) - h * w) * first
    assert macs.tolist() == [[7 + own, 7, 7 + halo]] * n


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_batch_or_schedule_changes_a_bit(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    weights = [StageWeights(24, 24, dtype), StageWeights(24, 40, dtype)]
    x = torch.randn(3, 19, 37, 24).to(dtype)
    batch, _, _ = run(x, weights, 40, 1000)
    for order, blocks in (("rev", 2), ("rand", 5)):
        assert torch.equal(run(x, weights, 40, blocks, order=order, global_races=True)[0], batch)
    assert torch.equal(run(x[1:2].contiguous(), weights, 40, 2)[0], batch[1:2])


def test_memory_traffic() -> None:
    """Few bank conflicts, whole sectors, what lies between in no memory."""
    weights = [StageWeights(64, 64, torch.float16) for _ in range(2)]
    x = torch.randn(1, 64, 64, 64).to(torch.float16)
    out, _, info = run(x, weights, 64, 1, counters=True)
    assert info["bank_conflict_ways"] <= 1.1
    assert info["gst_bytes"] == out.numel() * 2
    read = sum(site["global_bytes"] for site in info["memory_sites"] if site["opcode"].startswith("cp.async"))
    assert read <= 1.45 * x.numel() * 2 + 2 * 64 * (64 * 2 + 10 * 4)
