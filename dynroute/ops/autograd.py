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
    maps: Sequence[int] | None


_RULES: dict[str, _Rule] = {}
_FRAGMENT = torch.library.Library("dynroute", "FRAGMENT")  # what it holds lasts as long as it does


def register(
    op: str,
    backward: Callable[..., tuple],
    setup_context: Callable[[Any, tuple, Any], None],
    maps: Sequence[int] | None = None,
) -> None:
    """Registers the derivative of `dynroute::op`, as `torch.library.register_autograd` takes it.

    In the backward, what is needed is asked of `needs(ctx)`. Under autocast the operator computes in float32 on the
    CPU, and with maps in autocast's type on CUDA (`lower_under_autocast`).
    """
    torch.library.register_autograd(f"dynroute::{op}", backward, setup_context=setup_context)
    torch.library.register_autocast(f"dynroute::{op}", "cpu", torch.float32)
    lower_under_autocast(op, maps)
    _RULES[op] = _Rule(getattr(torch.ops.dynroute, op).default, setup_context, backward, maps)


def lower_under_autocast(op: str, maps: Sequence[int] | None = None) -> None:
    """Has `dynroute::op` compute in autocast's type on CUDA tensors, as torch's convolutions do.

    maps: which arguments are of that type: a training operator's weights and statistics stay float32. None: all.
    """
    overload = getattr(torch.ops.dynroute, op).default
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def lowered(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return overload(*_lowered(args, maps))

    _FRAGMENT.impl(op, lowered, "AutocastCUDA")


def _lowered(args: tuple, maps: Sequence[int] | None) -> Sequence[Any]:
    """Arguments in autocast's type, those of `maps` or all, as far as they are on CUDA."""
    dtype = torch.get_autocast_dtype("cuda")
    if maps is None:
        return _cast(args, "cuda", dtype)  # type: ignore[no-any-return]
    return [_cast(value, "cuda", dtype) if i in maps else value for i, value in enumerate(args)]


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
    if rule is None or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
        return getattr(torch.ops.dynroute, op)(*args)
    if torch.is_autocast_enabled("cuda"):
        args = tuple(_lowered(args, rule.maps))
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
