"""The operators' Triton kernels on the emulator, beside their CUDA kernels, for `triton_code.py`: same arguments,
architecture and counters. The counts are those of PTX, and emulated; registers, spills and shared memory are static.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from benchmarks.cuda_code import SOURCES, compile_one
from benchmarks.cuda_operators import C, H, W
from benchmarks.cuda_static import COUNTERS
from benchmarks.gpu_clock import StandIn
from benchmarks.gpu_operators import OPERATORS
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import read_launches
from tests.support import cases
from tests.support.cuda import operators as on_cuda
from tests.support.cuda.devices import A100
from tests.support.triton_cases import call
from tests.support.triton_launch import emulated, usage

SAMPLES = 8  # of the route
MORE = {"load_sectors": "gld_sectors", "store_sectors": "gst_sectors"}  # of 32 bytes


def operators(dtype: torch.dtype = torch.float16) -> list[dict[str, Any]]:
    """A row for each operator: Triton's side, CUDA's, and how far their results are apart."""
    calls = [(op, make(StandIn(), dtype, C, H, W)[0], [1, C, H, W]) for op, make in OPERATORS.values()]
    calls.append(("route", cases.route(SAMPLES), [SAMPLES, 4, 3]))
    rows = []
    for op, arguments, shape in tqdm(calls, desc="emulated", unit="operator", disable=None):
        kept = next(value.dtype for value in arguments if isinstance(value, Tensor))
        (of_triton, triton), (of_cuda, cuda) = triton_side(op, arguments), cuda_side(op, arguments, kept)
        rows.append({
            "operator": op, "shape": shape, "dtype": str(kept), "triton": triton, "cuda": cuda,
            "apart_of_largest": apart(of_triton, of_cuda),
        })  # fmt: skip
    return rows


def apart(results: Any, others: Any) -> float:
    """The largest difference between two results, over the largest value."""
    pairs = list(zip(tree_leaves(results), tree_leaves(others), strict=True))
    return max(((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-6)).item() for a, b in pairs)


def triton_side(op: str, arguments: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """The result, and what was counted."""
    with emulated(counters=True) as launches:
        result = call(op, *arguments)
    kernels = [
        {
            "kernel": one.kernel,
            "programs": list(one.grid),
            "threads": 32 * one.code.metadata.num_warps,
            **usage(one.code),
        }
        for one in launches
    ]
    return result, {**total([one.counts for one in launches]), "kernels": kernels}


def cuda_side(op: str, arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The same of the CUDA kernels, for an A100."""
    statistics: list[tuple[str, dict[str, Any]]] = []
    result = on_cuda.emulated(op, *arguments, limits=A100, statistics=statistics, counters=True)
    *_, launches = getattr(torch.ops.dynroute, f"cuda_{op}_call")(*arguments, [*A100])
    kernels = []
    for one in read_launches(launches):
        name = f"{one.kernel}_{emulator.SUFFIX[dtype]}"
        (code,) = (made for made in compile_one(SOURCES / f"{one.kernel}.cu", "sm_80") if made.name == name)
        kernels.append({
            "kernel": one.kernel, "programs": [one.blocks, 1, 1], "threads": one.threads, "registers": code.registers,
            "stack_bytes": code.stack, "local_accesses": code.local, "shared_bytes": code.shared + one.shared,
        })  # fmt: skip
    return result, {**total([counts for _, counts in statistics]), "kernels": kernels}


def total(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of an operator's launches together."""
    sums = {name: sum(found[counter] for found in counts) for name, counter in (COUNTERS | MORE).items()}
    ideal = sums["ideal_shared_wavefronts"]
    ways = sums["shared_wavefronts"] / ideal if ideal else 1.0
    widths = sum((Counter(found["gld_widths"]) for found in counts), Counter())
    return {
        "launches": len(counts), **sums, "bank_conflict_ways": ways,
        "threads_loads_by_bytes": {str(width): widths[width] for width in sorted(widths)},
    }  # fmt: skip
