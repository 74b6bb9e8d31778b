"""How far an operator's result may be from what it means: one rule for every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynroute.ops import reference
from tests.support.trees import to


def errors(op: str, args: Any, got: Tensor) -> tuple[float, float]:
    """Largest errors over the largest value, against float64: ours, and that of torch at the arguments' precision."""
    plain = getattr(reference, op)
    wanted = plain(*to(args, torch.float64))
    largest = max(wanted.abs().max().item(), 1e-6)
    return tuple((made.double() - wanted).abs().max().item() / largest for made in (got, plain(*args)))  # type: ignore[return-value]


def check_error(op: str, args: Any, got: Tensor, times: float = 2) -> None:
    """Within rounding of float64 in float32; in 16 bits at most so many times torch's own error at that precision."""
    error, own = errors(op, args, got)
    step = torch.finfo(got.dtype).eps
    assert error <= (2e-5 if got.dtype == torch.float32 else times * max(own, step)), (error, own)


def check_result(op: str, args: Any, got: Tensor, times: float = 2) -> None:
    """Shape, layout, no NaN that was in memory before, and `check_error`."""
    wanted = getattr(reference, op)(*args)
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    assert got.dim() < 4 or got.is_contiguous(memory_format=torch.channels_last)
    assert not got.isnan().any(), "something was not written, or read before it was"
    if got.numel():
        check_error(op, args, got, times)
