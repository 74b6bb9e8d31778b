"""Many files read at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
U = TypeVar("U")
# Decoders let go of Python's lock; more threads than this wait for it between two pictures.
_MOST = 8
# Items that are begun or done ahead of the one that is taken, for each thread: what is read must not pile up.
_AHEAD = 8


def in_threads(function: Callable[[T], U], items: Sequence[T], label: str) -> Iterator[U]:
    """`function` of each item, in order, computed in threads; a bar on stderr where that takes over two seconds.

    The first exception, in the order of the items, is raised when what was begun has ended.
    """
    threads = min(_MOST, os.cpu_count() or 1)
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc=label, total=len(items), delay=2, leave=False, dynamic_ncols=True) as bar,
    ):
        begun: deque[Future[U]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(function, item))
                if len(begun) > threads * _AHEAD:
                    yield begun.popleft().result()
                    bar.update()
            while begun:
                yield begun.popleft().result()
                bar.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
