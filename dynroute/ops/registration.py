"""What the operators' registrations with torch share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors


def nhwc_empty(x: Tensor, shape: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor in channels_last, on x's device and of its type, if none is given."""
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)


def raw_type(x: Tensor, narrow: bool) -> torch.dtype:
    """What the training operators keep raw outputs in."""
    return torch.bfloat16 if narrow else x.dtype


def flops_of(shape: Any) -> Any:
    """Shape of a tensor argument in a FLOP formula, which receives either shapes or tensors."""
    return shape.shape if isinstance(shape, Tensor) else shape


def as_weights(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that lie in one tensor, one after the other, as views in the shapes of their weights."""
    if type(flat) is Tensor and not torch.compiler.is_compiling():
        return list(_unflatten_dense_tensors(flat, weights))  # in C++, but deaf to symbolic sizes
    return [part.view(w.shape) for part, w in zip(flat.split([w.numel() for w in weights]), weights)]
