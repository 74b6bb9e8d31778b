"""What happens to memory between the steps of a training: malloc's part, and the garbage collector's."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT, _LARGEST = (1 << 31) - 1, 1 << 30


def keep_freed_memory() -> bool:
    """Has malloc keep what is freed for the next step instead of giving it back to the system, for this process.

    A training step frees all its maps at its end. Where they lie at the top of the heap glibc gives them back, and the
    next step's first writes are page faults: 90 of 560 ms in a step of 300 MB.

    Returns: whether it took; other C libraries than glibc have no such switch.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


def settle() -> None:
    """Has steps find the memory that the step before used, and the collector leave alone what is there by now.

    A step leaves so many objects that Python's garbage collector would look through all that there are (modules, data,
    torch itself) every few steps: 5% of a small step's time.
    """
    keep_freed_memory()
    gc.collect()
    gc.freeze()


@contextmanager
def settled() -> Iterator[None]:
    """`settle` before, and the collector as it was after; malloc stays as `keep_freed_memory` leaves it."""
    settle()
    try:
        yield
    finally:
        gc.unfreeze()
