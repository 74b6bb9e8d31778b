"""What the operators' registrations with torch share: one derivative, one FLOP formula, whichever kernels compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors
from torch.utils.flop_counter import register_flop_formula

from dynroute.ops import autograd

_FORMULAS: dict[str, Callable[..., int]] = {}


def flop_formula(op: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Says how many FLOPs an operator, or its backward, does; as `torch.utils.flop_counter.register_flop_formula`."""

    def keep(formula: Callable[..., int]) -> Callable[..., int]:
        _FORMULAS[op] = formula
        return formula

    return keep


def register(namespace: str, op: str) -> None:
    """Makes the derivative, the rules of autocast and the FLOPs of `op` known for `torch.ops.<namespace>.<op>`."""
    autograd.register(namespace, op)
    for name in (op, f"{op}_backward"):
        if name in _FORMULAS:
            register_flop_formula(getattr(getattr(torch.ops, namespace), name))(_FORMULAS[name])


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
