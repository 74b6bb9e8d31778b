"""Choice of a backend, and what the operators' registrations share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dynroute.native import library

BACKENDS = ("auto", "cpu", "reference", "cuda", "triton")


def why_not_cpu(x: Tensor) -> str | None:
    """Why the CPU kernels cannot compute on this tensor, or None if they can."""
    if library.why_not_loaded() is not None:
        return library.why_not_loaded()
    if x.device.type != "cpu":
        return f"the tensors are on {x.device}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"{x.dtype} is not float32 or float64"
    return None


def use_native(op: str, backend: str, x: Tensor) -> bool:
    """Whether `op` runs on the native kernels (True) or on the reference (False).

    "auto" takes the native kernels where they can be used; a backend that is named is used or refused.

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the backend cannot be used, with the reason.
    """
    if backend == "reference":
        return False
    if backend == "auto":
        return why_not_cpu(x) is None
    if backend == "cpu":
        reason = why_not_cpu(x)
        if reason is not None:
            raise RuntimeError(f"{op}: backend 'cpu' cannot be used: {reason}")
        return True
    if backend in ("cuda", "triton"):
        raise RuntimeError(f"{op}: backend {backend!r} is not built yet")
    raise ValueError(f"{op}: backend: wanted one of {', '.join(BACKENDS)}, got {backend!r}")


def nhwc_empty(x: Tensor, shape: Sequence[Any]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def flops_of(shape: Any) -> Any:
    """Shape of a tensor argument in a FLOP formula, which receives either shapes or tensors."""
    return shape.shape if isinstance(shape, Tensor) else shape
