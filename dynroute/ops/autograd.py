"""An operator's derivative, registered with torch; and a shorter way to the operator for training without a compiler.

What torch generates for a registered derivative walks through all arguments as trees, several times in each direction.
For operators with lists of weights that takes longer than a small map's kernels. `call` records the same two functions
as one `torch.autograd.Function`; compilers, exporters and `torch.ops` users get the registered operator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.amp.autocast_mode import _cast

from dynroute.ops import synchronise


class _Rule(NamedTuple):
    overload: Any
    setup_context: Callable[[Any, tuple, Any], None]
    backward: Callable[..., tuple]


_RULES: dict[str, _Rule] = {}
_FRAGMENT = torch.library.Library("dynroute", "FRAGMENT")  # what it holds lasts as long as it does


def register(op: str, backward: Callable[..., tuple], setup_context: Callable[[Any, tuple, Any], None]) -> None:
    """Registers the derivative of `dynroute::op`, as `torch.library.register_autograd` takes it.

    In the backward, what is needed is asked of `needs(ctx)`. Under autocast the operator computes in float32.
    """
    torch.library.register_autograd(f"dynroute::{op}", backward, setup_context=setup_context)
    torch.library.register_autocast(f"dynroute::{op}", "cpu", torch.float32)
    _RULES[op] = _Rule(getattr(torch.ops.dynroute, op).default, setup_context, backward)


def lower_under_autocast(op: str) -> None:
    """Has `dynroute::op` compute in autocast's type on CUDA tensors, as torch's convolutions do."""
    overload = getattr(torch.ops.dynroute, op).default
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def lowered(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return overload(*_cast(args, "cuda", torch.get_autocast_dtype("cuda")))

    _FRAGMENT.impl(op, lowered, "AutocastCUDA")


def needs(ctx: Any) -> Sequence[Any]:
    """For each argument whether its gradient is needed; a list for a list."""
    return ctx.nested_needs if hasattr(ctx, "nested_needs") else ctx.needs_input_grad


def call(op: str, *args: Any) -> Any:
    """`torch.ops.dynroute.<op>(*args)`, with its derivative recorded."""
    if torch.compiler.is_compiling():
        return getattr(torch.ops.dynroute, op)(*args)
    try:
        return _called(op, args)
    except RuntimeError as error:
        raise _cause(error) from None


def _called(op: str, args: tuple) -> Any:
    rule = _RULES.get(op)
    lowers = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
    if rule is None or lowers or not torch.is_grad_enabled():
        return getattr(torch.ops.dynroute, op)(*args)
    structure, flat = [], []
    for value in args:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            structure.append(len(value))
            flat += value
        else:
            structure.append(_ONE)
            flat.append(value)
    return _Call.apply(rule, structure, *flat)


def _cause(error: RuntimeError) -> BaseException:
    """What Python raised where an operator called it, or the operator's own error."""
    return synchronise.failure() or error


_ONE = -1  # an argument that is no list of tensors


def _nested(structure: list[int], flat: Sequence[Any]) -> list[Any]:
    nested, at = [], 0
    for length in structure:
        nested.append(flat[at] if length == _ONE else list(flat[at : at + length]))
        at += abs(length)
    return nested


class _Call(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rule: _Rule, structure: list[int], *flat: Any) -> Any:
        args = _nested(structure, flat)
        with torch._C._AutoDispatchBelowAutograd():  # past the registered derivative, whose part this is
            out = rule.overload(*args)
        ctx.rule, ctx.structure = rule, structure
        ctx.nested_needs = _nested(structure, ctx.needs_input_grad[2:])
        rule.setup_context(ctx, tuple(args), out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        flat: list[Tensor | None] = [None, None]
        try:
            made = ctx.rule.backward(ctx, *grads)
        except RuntimeError as error:
            raise _cause(error) from None
        for length, grad in zip(ctx.structure, made, strict=True):
            if length == _ONE:
                flat.append(grad)
            else:
                flat += grad
        return tuple(flat)
