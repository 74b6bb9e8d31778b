"""What Nsight Compute counts of each kernel of a call, for `gpu_networks.py`; run as a script it makes that call."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from typing import Any

# Ours: ncu's. Percent are of what a multiprocessor could hold (warps) or issue (instructions) while it is active.
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "active_percent": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "possible_percent": "sm__maximum_warps_per_active_cycle_pct",
    "issue_percent": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "instructions": "smsp__inst_executed.sum",
    "dram_bytes": "dram__bytes.sum",
    "l2_bytes": "lts__t_bytes.sum",
}
LAUNCHES = 90  # a call has fewer


def counters() -> dict[str, Any]:
    """Of each kernel its launches and the means of `COUNTERS` over them; of one call, everything open.

    ncu empties the caches before each kernel and replays it for each group of counters: times are longer than
    in a call.
    """
    tool = shutil.which("ncu")
    if tool is None:
        return {"absent": "Nsight Compute (ncu) was not found"}
    command = [
        tool, "--metrics", ",".join(COUNTERS.values()), "--csv", "--page", "raw", "--print-units", "base",
        "--clock-control", "none", "--target-processes", "all", "--launch-count", str(LAUNCHES),
        "--kernel-name", "regex:_f16$", sys.executable, "-m", "benchmarks.gpu_counters",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except subprocess.TimeoutExpired:
        return {"absent": "ncu took more than two minutes"}
    if done.returncode:
        return {"absent": f"ncu: {(done.stdout + done.stderr).strip()[-300:]}"}
    return {"kind": "measured", "by": "ncu", "kernels": read_counters(done.stdout)}


def read_counters(text: str) -> list[dict[str, Any]]:
    """ncu's CSV, kernels in the order of their first launch; a launch that misses a number is left out."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(lines[begin:]):
        try:
            values = [float(row[name].replace(",", "")) for name in COUNTERS.values()]
        except ValueError:  # the line of units
            continue
        found.setdefault(row["Kernel Name"].partition("(")[0], []).append(values)
    rows = []
    for name, launches in found.items():
        means = (sum(column) / len(launches) for column in zip(*launches, strict=True))
        row_of = dict(zip(COUNTERS, means, strict=True))
        row_of["us"] *= 1e-3  # ncu: nanoseconds
        rows.append({"name": name, "launches": len(launches), **row_of})
    return rows


if __name__ == "__main__":
    import torch

    from benchmarks.gpu_clock import Gpu
    from benchmarks.gpu_networks import PROFILED, Scale, noise, runtime

    _gpu = Gpu()
    _run = runtime(_gpu, Scale(_gpu, quick=False), "dynamic_raw_l16", torch.float16)
    _run(noise(_gpu, *PROFILED), gates=_run.all_open_gates())
    torch.cuda.synchronize()
