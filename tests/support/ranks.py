"""Several processes that work together, as torchrun starts them: gloo, one thread each."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = 240  # seconds, for one that hangs; others may be busy beside


def _rank(rank: int, processes: int, work: Callable[..., Any], folder: Path, args: tuple) -> None:
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


def _started(work: Callable[..., Any], processes: int, *args: Any) -> list[Any]:
    """Processes that run work(rank, processes, *args)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch.distributed", "dynroute.train"])  # imported once for all tests
    started = [context.Process(target=work, args=(rank, processes, *args), daemon=True) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def _trainer(rank: int, processes: int, port: int, work: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    work(*args)


def exits(work: Callable[..., Any], processes: int, *args: Any) -> list[int | None]:
    """The exit statuses of processes that run work(*args), with the environment that torchrun would give them; None: it
    hangs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = _started(_trainer, processes, port, work, args)
    deadline = time.monotonic() + TIMEOUT
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
    statuses = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return statuses


def together(work: Callable[..., Any], processes: int, folder: Path, *args: Any) -> list[Any]:
    """What work(rank, processes, *args) returned in each process; fails with the first error, or when one hangs."""
    folder.mkdir(parents=True)
    started = _started(_rank, processes, work, folder, args)
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
