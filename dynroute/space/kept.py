"""Constant tensors that are made once and kept: real ones only.

While tensors are faked, traced or transformed, a new tensor is a stand-in for one, of use there and then. A cache that
kept it would fail every later call of the process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def makes_stand_ins() -> bool:
    """Whether a tensor made now may be a stand-in: of a compiler, an exporter, a dispatch mode or `torch.func`."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps what a function returns for 64 different arguments; nobody may write to it.

    Args:
        make: makes tensors of a device and a type that it names itself: defaults may be anything.
    """
    once = lru_cache(maxsize=64)(make)

    @wraps(make)
    def find(*args: P.args, **kwargs: P.kwargs) -> T:
        if makes_stand_ins():
            return make(*args, **kwargs)
        if torch.is_inference_mode_enabled():  # another call may need gradients
            with torch.inference_mode(False):
                return once(*args, **kwargs)  # type: ignore[arg-type]
        return once(*args, **kwargs)  # type: ignore[arg-type]

    find.forget = once.cache_clear  # type: ignore[attr-defined]
    return find
