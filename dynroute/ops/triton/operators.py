"""Makes `dynroute_triton::<op>` known to torch, with derivatives and FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from dynroute.native import library
from dynroute.ops import reference
from dynroute.ops.triton import aggregate, gate, route, sepconv, transform

DIFFERENTIATED = {"sepconv": sepconv, "transform": transform, "gate": gate, "aggregate": aggregate}
__all__ = ["DIFFERENTIATED", "route"]


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, Tensor) for one in value)


def _derive(op: str) -> None:
    """Registers the derivative: the operator's meaning in plain PyTorch, once more and backwards."""
    meaning = getattr(reference, op)

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        tensors, ctx.structure = [], []
        for value in inputs:
            if _is_list(value):
                ctx.structure.append(len(value))
                tensors += value
            else:
                ctx.structure.append(None if isinstance(value, Tensor) else (value,))
                tensors += [value] if isinstance(value, Tensor) else []
        ctx.save_for_backward(*tensors)

    def backward(ctx: Any, grad: Tensor) -> tuple:
        saved, inputs = iter(ctx.saved_tensors), []
        for shape in ctx.structure:
            if isinstance(shape, int):
                inputs.append([next(saved).detach() for _ in range(shape)])
            else:
                inputs.append(next(saved).detach() if shape is None else shape[0])
        learnt = [one for value in inputs for one in (value if _is_list(value) else [value]) if isinstance(one, Tensor)]
        learnt = [one.requires_grad_() for one in learnt if one.is_floating_point()]
        with torch.enable_grad():
            out = meaning(*inputs)
        found = dict(zip(map(id, learnt), torch.autograd.grad(out, learnt, grad, allow_unused=True)))
        grads = [[found.get(id(one)) for one in (value if _is_list(value) else [value])] for value in inputs]
        return tuple(of if _is_list(value) else of[0] for of, value in zip(grads, inputs))

    torch.library.register_autograd(f"dynroute_triton::{op}", backward, setup_context=setup_context)


for _op in DIFFERENTIATED:
    _derive(_op)
    if library.why_not_loaded() is None:  # the formulas are the native operators'
        flop_registry[getattr(torch.ops.dynroute_triton, _op)] = flop_registry[getattr(torch.ops.dynroute, _op)]
