"""Instruction sets of the kernels: what each needs of a processor, which are compiled in, which one is in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynroute.native import library

NEEDED_OF_CPU = {"portable": set(), "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512vl", "avx512bw", "avx512dq"}}
NEEDED_OF_CPU["amx"] = NEEDED_OF_CPU["avx512"] | {"avx512_bf16", "amx_tile", "amx_bf16"}
ISA = library.build_info()["isa"] if library.why_not_loaded() is None else None
amx = pytest.mark.skipif(
    ISA != "amx", reason=f"the kernels in use are {ISA}: {library.why_not_loaded() or library.build_info()['why']}"
)


def cpu_flags() -> set[str]:
    """What this machine's processor can do, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split(":")[1].split()}


def other_isas() -> list[str]:
    """Those compiled in that come after the one in use, from best to worst; none where one is named already."""
    if library.why_not_loaded() is not None or "DYNROUTE_CPU_ISA" in os.environ:
        return []
    info = library.build_info()
    best = info["isas"].index(info["isa"])
    return info["isas"][best + 1 :]  # this machine may not have those before the best
