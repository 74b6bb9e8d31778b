"""Makes `dynroute_triton::<op>` known to torch, with derivatives and FLOP formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import flop_registry

from dynroute.native import library
from dynroute.ops import reference
from dynroute.ops.triton import aggregate, gate, route, sepconv, transform

DIFFERENTIATED = {"sepconv": sepconv, "transform": transform, "gate": gate, "aggregate": aggregate}
__all__ = ["DIFFERENTIATED", "route"]


def _derive(op: str) -> None:
    """Registers the derivative: the operator's meaning in plain PyTorch, once more and backwards."""
    meaning = getattr(reference, op)

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        values, ctx.tree = tree_flatten(list(inputs))
        ctx.others = [None if isinstance(value, Tensor) else value for value in values]
        ctx.save_for_backward(*(value if isinstance(value, Tensor) else None for value in values))

    def backward(ctx: Any, grad: Tensor) -> tuple:
        needs = tree_leaves(list(ctx.needs_input_grad))
        values = [
            other if saved is None else saved.detach().requires_grad_(wants)
            for saved, other, wants in zip(ctx.saved_tensors, ctx.others, needs, strict=True)
        ]
        with torch.enable_grad():
            out = meaning(*tree_unflatten(values, ctx.tree))
        learnt = [value for value, wants in zip(values, needs) if wants]
        found = iter(torch.autograd.grad(out, learnt, grad, allow_unused=True))
        return tuple(tree_unflatten([next(found) if wants else None for wants in needs], ctx.tree))

    torch.library.register_autograd(f"dynroute_triton::{op}", backward, setup_context=setup_context)


for _op in DIFFERENTIATED:
    _derive(_op)
    if library.why_not_loaded() is None:  # the formulas are the native operators'
        flop_registry[getattr(torch.ops.dynroute_triton, _op)] = flop_registry[getattr(torch.ops.dynroute, _op)]
