"""Several processes that work together, as torchrun starts them: gloo, one thread each."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 240  # seconds, for one that hangs; others may be busy beside


def _rank(work: Callable[..., Any], folder: Path, rank: int, processes: int, args: tuple) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes,
            timeout=datetime.timedelta(seconds=TIMEOUT),
        )  # fmt: skip
        torch.save(work(rank, processes, *args), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)  # the others would wait for it


def together(work: Callable[..., Any], processes: int, folder: Path, *args: Any) -> list[Any]:
    """What work(rank, processes, *args) returned in each process; fails with the first error, or when one hangs."""
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch.distributed", "dynroute.train"])  # imported once for all tests
    started = [
        context.Process(target=_rank, args=(work, folder, rank, processes, args), daemon=True)
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    deadline = time.monotonic() + TIMEOUT
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    hanging = [rank for rank, process in enumerate(started) if process.is_alive()]
    for process in started:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert not errors, "\n".join(errors)
    assert not hanging, f"processes {hanging} of {processes} hang"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]
