"""A GPU's clock, for `gpu_networks.py`: times on the device and of whole calls, kernel by kernel; the machine's state.

`Gpu` measures. `StandIn` goes through the same motions on the CPU, so that a dry run reaches every line; whatever it
returns says "stand-in" where a measurement says "measured".
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

FLUSH_BYTES = 256 << 20  # several times any L2
WARMUP = 5
KERNEL_CALLS = 5
Jobs = dict[str, Callable[[], object]]


class Gpu:
    """The current CUDA device."""

    device, kind, backend = "cuda", "measured", "cuda"

    def __init__(self) -> None:
        self._cycles_per_ms: float | None = None

    def prepare(self) -> None:
        """References compute in float32 what they are asked to, by the fastest of cuDNN's kernels."""
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def on_device(self, jobs: Jobs, rounds: int, flushed: bool) -> dict[str, np.ndarray]:
        """Milliseconds [rounds] of each job between two events on the device; every round starts with another job.

        The stream is held up before the first event until the host has submitted the job, so that no time of Python's
        or of launches is in it: what a call costs with them, `calls` says. flushed: with L2 emptied before.
        """
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if flushed else None
        delays = {name: self._delay(job) for name, job in jobs.items()}
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def once(name: str) -> float:
            if flush is not None:
                flush.zero_()
            torch.cuda._sleep(delays[name])
            start.record()
            jobs[name]()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)

        return _rounds(jobs, rounds, once)

    def calls(self, jobs: Jobs, rounds: int) -> dict[str, np.ndarray]:
        """Milliseconds [rounds] of each job on the host's clock, from the call until the device is done."""

        def once(name: str) -> float:
            self.synchronize()
            begin = time.perf_counter()
            jobs[name]()
            self.synchronize()
            return 1e3 * (time.perf_counter() - begin)

        return _rounds(jobs, rounds, once)

    def kernels(self, job: Callable[[], object], calls: int = KERNEL_CALLS) -> list[dict[str, Any]]:
        """Each kernel of a call by torch's profiler: launches and microseconds in a call, the longest first."""
        job()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(calls):
                job()
            torch.cuda.synchronize()
        found = [
            {"name": row.key[:80], "launches": row.count / calls, "us": row.device_time_total / calls}
            for row in profile.key_averages()
            if row.device_time_total > 0
        ]
        return sorted(found, key=lambda row: -row["us"])

    def recorded(self, job: Callable[[], Any]) -> Callable[[], Any]:
        """The job as a CUDA graph, which costs the host one launch; its output is the same memory each time."""
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):  # cuDNN chooses, libraries take their memory
                job()
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = job()

        def replay() -> Any:
            graph.replay()
            return out

        return replay

    def describe(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(0)
        return {
            "name": properties.name, "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory, "cuda": torch.version.cuda,
        }  # fmt: skip

    def clocks(self) -> dict[str, str]:
        """What nvidia-smi says of clocks, power and temperature, which are noted and never set; empty without it."""
        fields = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,driver_version"
        if shutil.which("nvidia-smi") is None:
            return {}
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return dict(zip(fields.split(","), map(str.strip, done.stdout.split(",")))) if not done.returncode else {}

    def memory(self, job: Callable[[], object]) -> int:
        """The most bytes that torch's allocator held at once during a job."""
        torch.cuda.reset_peak_memory_stats()
        job()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def _delay(self, job: Callable[[], object]) -> int:
        """Cycles that take twice as long as the host takes to submit the job."""
        if self._cycles_per_ms is None:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            for _ in range(2):  # the first one warms up
                start.record()
                torch.cuda._sleep(10_000_000)
                end.record()
                end.synchronize()
            self._cycles_per_ms = 10_000_000 / start.elapsed_time(end)
        job()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        job()
        submitted = 1e3 * (time.perf_counter() - begin)
        torch.cuda.synchronize()
        return int(self._cycles_per_ms * (2 * submitted + 0.05))


class StandIn(Gpu):
    """The CPU, for a dry run."""

    device, kind, backend = "cpu", "stand-in", "cpu"

    def prepare(self) -> None:
        torch.set_num_threads(1)

    def synchronize(self) -> None: ...

    def on_device(self, jobs: Jobs, rounds: int, flushed: bool) -> dict[str, np.ndarray]:
        return self.calls(jobs, rounds)

    def kernels(self, job: Callable[[], object], calls: int = KERNEL_CALLS) -> list[dict[str, Any]]:
        job()
        return []

    def recorded(self, job: Callable[[], Any]) -> Callable[[], Any]:
        return job

    def describe(self) -> dict[str, Any]:
        return {"name": "no GPU: a dry run on the CPU"}

    def memory(self, job: Callable[[], object]) -> int:
        job()
        return 0


def _rounds(jobs: Jobs, rounds: int, once: Callable[[str], float]) -> dict[str, np.ndarray]:
    names = list(jobs)
    taken = np.zeros((len(names), rounds))
    for turn in range(-min(WARMUP, rounds), rounds):
        for i in range(len(names)):
            which = (i + turn) % len(names)
            value = once(names[which])
            if turn >= 0:
                taken[which, turn] = value
    return dict(zip(names, taken))
