"""What the machine can do at most: multiply-adds on registers, products of tiles, and copies of memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import measured
from dynroute.native import library

GIGA = 1e-9
TILE_PRODUCTS = 6  # of bfloat16 parts in one float32 product (docs/kernels/cpu.md, AMX)
PROBE_SECONDS = 0.03  # of one sample
FALLBACK_L2 = 1 << 20
LARGE_BYTES = 256 << 20  # each of source and target; a larger cache than this would be flattered


def probe(rounds: int = 9) -> dict[str, Any]:
    """Peaks of this machine.

    Returns:
        fma_gflops: {isa: {"1": GFLOP/s of one thread, "<n>": of all torch threads}}, each instruction set that runs;
        tile_gflops: the same of bfloat16 products of tiles, where the chosen kernels use them, else None;
        copy_gbs: {"large", "l2": GB/s of a copy, read and written bytes added}; l2_bytes; peak_gflops and
        peak_copy_gbs, what rates are held against: the best round of the unit that float32 products use (peak_of: its
        name; with tiles, a sixth of their rate) and of the large copy, with all threads (a ceiling is the best that
        was seen, not the middle).
    """
    threads = torch.get_num_threads()
    counts = sorted({1, threads})
    fma: dict[str, Any] = {}
    info = library.build_info() if library.why_not_loaded() is None else {"isas": [], "isa": None}
    for isa in info["isas"]:
        try:
            torch.ops.dynroute.fma_flops(isa, 1)
        except RuntimeError as error:
            fma[isa] = {"absent": str(error)}
            continue
        fma[isa] = {str(n): _best(_flop_rates(torch.ops.dynroute.fma_flops, isa, n, rounds)) for n in counts}
    l2 = l2_bytes()
    copies = {
        "large": _best(_copy_rates(LARGE_BYTES, rounds)),
        "l2": _best(_copy_rates(l2 // 4 * threads, rounds)),  # source and target fill half of each thread's L2
    }
    tiles = None
    if info["isa"] == "amx":
        flops = torch.ops.dynroute.tile_flops
        tiles = {str(n): _best(_flop_rates(flops, "amx", n, rounds)) for n in counts}
    chosen = (tiles or fma.get(info["isa"], {})).get(str(threads))
    return {
        "isa": info["isa"],
        "threads": threads,
        "fma_gflops": fma,
        "tile_gflops": tiles,
        "copy_gbs": copies,
        "l2_bytes": l2,
        "peak_gflops": chosen["best"] / (TILE_PRODUCTS if tiles else 1) if chosen else None,
        "peak_of": "tile products / 6" if tiles else "multiply-adds",
        "peak_copy_gbs": copies["large"]["best"],
    }


def _best(rates: np.ndarray) -> dict[str, Any]:
    return {**measured(rates), "best": float(rates.max())}


def cpu_flags() -> set[str]:
    """Instruction set extensions as the kernel names them; empty where it does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.partition(":")[2].split())
    except OSError:
        pass
    return set()


def l2_bytes() -> int:
    """Of one core."""
    try:
        return os.sysconf("SC_LEVEL2_CACHE_SIZE") or FALLBACK_L2
    except (ValueError, OSError):
        return FALLBACK_L2


def _flop_rates(flops: Callable[[str, int], float], isa: str, threads: int, rounds: int) -> np.ndarray:
    """GFLOP/s [rounds] of that many threads at once. The operator lets go of the interpreter's lock."""
    steps, started = 10_000, time.perf_counter()
    while flops(isa, steps) and time.perf_counter() - started < PROBE_SECONDS:
        steps, started = 2 * steps, time.perf_counter()
    rates = []
    for _ in range(rounds):
        done = [0.0] * threads

        def work(i: int, done: list[float] = done) -> None:
            done[i] = flops(isa, steps)

        others = [threading.Thread(target=work, args=(i,)) for i in range(1, threads)]
        started = time.perf_counter()
        for other in others:
            other.start()
        work(0)
        for other in others:
            other.join()
        rates.append(sum(done) / (time.perf_counter() - started) * GIGA)
    return np.array(rates)


def _copy_rates(size: int, rounds: int) -> np.ndarray:
    """GB/s [rounds] of torch's copy of `size` bytes with torch's threads, source and target counted."""
    source, target = torch.ones(size // 4), torch.zeros(size // 4)
    target.copy_(source)
    calls = max(1, int(PROBE_SECONDS / max(_taken(lambda: target.copy_(source)), 1e-7)))

    def copies() -> None:
        for _ in range(calls):
            target.copy_(source)

    return np.array([2 * size * calls / _taken(copies) * GIGA for _ in range(rounds)])


def _taken(job: Callable[[], object]) -> float:
    started = time.perf_counter()
    job()
    return time.perf_counter() - started
