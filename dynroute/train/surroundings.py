"""What surrounds a run: torch's threads and algorithms, signals, and errors that a user can do something about."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch

from dynroute.train.parse import ConfigError

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_CHOICES = (":4096:8", ":16:8")  # those that torch takes for deterministic


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Inside, torch's error that memory did not suffice, or that an operator is not deterministic, is a ConfigError of
    one line."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if "does not have a deterministic implementation" in str(error):
            raise ConfigError(f"run.deterministic: {str(error).partition(',')[0]}") from error
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(error):
            raise
        raise ConfigError(
            f"{what}: out of memory; a smaller optimiser.batch or data.crop takes less, as does a larger "
            "optimiser.accumulate"
        ) from error


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch computes on so many threads; None: on as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deterministic(on: bool, device: torch.device) -> Iterator[None]:
    """Inside, if on, only deterministic algorithms compute: a run gives the same bits as another on the same machine
    with the same versions, threads and number of processes.

    Everything that trains on the CPU is deterministic anyway, as are the fused operators on CUDA and Triton: the only
    atomic additions of their kernels are of integers (executed work). What is not, and is exchanged for what is or
    refused, are operators of torch on a GPU: some backward passes, cuDNN's choice by timing, cuBLAS on several streams.

    Raises:
        ConfigError: CUDA is at work in this process already, and `CUBLAS_WORKSPACE_CONFIG` was not set before.
    """
    if not on:
        yield
        return
    with ExitStack() as held:
        if device.type == "cuda" and os.environ.get(CUBLAS) not in CUBLAS_CHOICES:
            if torch.cuda.is_initialized():
                raise ConfigError(
                    f"run.deterministic: wanted {CUBLAS}={CUBLAS_CHOICES[0]} in the environment before CUDA is first "
                    f"used, got {os.environ.get(CUBLAS)!r} and CUDA at work"
                )
            held.callback(_set_environment, CUBLAS, os.environ.get(CUBLAS))
            os.environ[CUBLAS] = CUBLAS_CHOICES[0]
        held.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        held.callback(setattr, torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield


def _set_environment(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextmanager
def interruptible() -> Iterator[Any]:
    """Inside, Ctrl-C or SIGTERM only makes the yielded function return True; a second Ctrl-C acts at once.

    A second SIGTERM does not: a scheduler sends it to all processes, and torchrun hands its own on to each.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
