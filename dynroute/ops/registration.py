"""What the operators' registrations with torch share: one derivative, one FLOP formula, whichever kernels compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._utils import _unflatten_dense_tensors
from torch.utils.flop_counter import register_flop_formula

from dynroute.ops import autograd

_FORMULAS: dict[str, Callable[..., int]] = {}


def flop_formula(op: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Says how many FLOPs an operator, or its backward, does, from its arguments."""

    def keep(formula: Callable[..., int]) -> Callable[..., int]:
        _FORMULAS[op] = formula
        return formula

    return keep


def register(namespace: str, op: str) -> None:
    """Makes the derivative, the rules of autocast and the FLOPs of `op` known for `torch.ops.<namespace>.<op>`."""
    autograd.register(namespace, op)
    for name in (op, f"{op}_backward"):
        if name in _FORMULAS:
            packet = getattr(getattr(torch.ops, namespace), name)
            register_flop_formula(packet, get_raw=True)(_counter(packet, _FORMULAS[name]))


def _counter(packet: Any, formula: Callable[..., int]) -> Callable[..., int]:
    arguments = packet.default._schema.arguments

    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        others = [kwargs.get(argument.name, argument.default_value) for argument in arguments[len(args) :]]
        return formula(*args, *others)

    return count


def taking_part(mask: Tensor | None, n: int) -> int:
    """How many of n samples a mask lets take part; all where there is none, and where nobody can know yet: of fake
    tensors, and while a CUDA graph is recorded.  It waits for a GPU."""
    if mask is None or isinstance(mask, FakeTensor) or mask.device.type == "meta":
        return n
    if mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return n
    return int(mask.sum())


def nhwc_empty(x: Tensor, shape: Sequence[Any], dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor in channels_last, on x's device and of its type, if none is given."""
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=torch.channels_last)


def raw_type(x: Tensor, narrow: bool) -> torch.dtype:
    """What the training operators keep raw outputs in."""
    return torch.bfloat16 if narrow else x.dtype


def as_weights(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Gradients that lie in one tensor, one after the other, as views in the shapes of their weights."""
    if type(flat) is Tensor and not torch.compiler.is_compiling():
        return list(_unflatten_dense_tensors(flat, weights))  # in C++, but deaf to symbolic sizes
    return [part.view(w.shape) for part, w in zip(flat.split([w.numel() for w in weights]), weights)]
