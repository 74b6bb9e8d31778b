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
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from dynroute.ops import synchronise


class _Derivative(NamedTuple):
    setup_context: Callable[[Any, tuple, Any], None]
    backward: Callable[..., tuple]
    maps: Sequence[int] | None
    lowers: bool


class _Rule(NamedTuple):
    kernels: Any
    overload: Any
    derivative: _Derivative


_DERIVATIVES: dict[str, _Derivative] = {}
_RULES: dict[tuple[str, str], _Rule] = {}
_FRAGMENTS: dict[str, torch.library.Library] = {}  # what they hold lasts as long as they do


def define(
    op: str,
    backward: Callable[..., tuple],
    setup_context: Callable[[Any, tuple, Any], None],
    maps: Sequence[int] | None = None,
    lowers: bool = True,
) -> None:
    """Says what an operator's derivative is, as `torch.library.register_autograd` takes it, whichever kernels compute.

    The backward finds the operators of the same kernels in `ctx.kernels` (`torch.ops.<namespace>`), and asks
    `needs(ctx)` what is needed. Under autocast the operator computes in float32 on the CPU and in autocast's type on
    CUDA, as torch's convolutions do.

    Args:
        maps: which arguments are of autocast's type on CUDA: a training operator's weights and statistics stay float32.
            None: all.
        lowers: whether autocast concerns it at all.
    """
    _DERIVATIVES[op] = _Derivative(setup_context, backward, maps, lowers)


def register(namespace: str, op: str) -> None:
    """Registers the derivative of `<namespace>::<op>` that was defined for `op`, and what autocast makes of it."""
    derivative = _DERIVATIVES[op]
    kernels, name = getattr(torch.ops, namespace), f"{namespace}::{op}"
    rule = _Rule(kernels, getattr(kernels, op).default, derivative)

    def setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        ctx.kernels = kernels
        derivative.setup_context(ctx, inputs, output)

    torch.library.register_autograd(name, derivative.backward, setup_context=setup_context)
    if derivative.lowers:
        torch.library.register_autocast(name, "cpu", torch.float32)
        _lower_on_cuda(namespace, op, rule)
    _RULES[namespace, op] = rule


def _lower_on_cuda(namespace: str, op: str, rule: _Rule) -> None:
    autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def lowered(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(autocast):
            return rule.overload(*_lowered(args, rule.derivative))

    if namespace not in _FRAGMENTS:
        _FRAGMENTS[namespace] = torch.library.Library(namespace, "FRAGMENT")
    _FRAGMENTS[namespace].impl(op, lowered, "AutocastCUDA")


def _lowered(args: tuple, derivative: _Derivative) -> Sequence[Any]:
    """Arguments in autocast's type, as far as they are on CUDA and it concerns them."""
    dtype, maps = torch.get_autocast_dtype("cuda"), derivative.maps
    if not derivative.lowers:
        return args
    if maps is None:
        return _cast(args, "cuda", dtype)  # type: ignore[no-any-return]
    return [_cast(value, "cuda", dtype) if i in maps else value for i, value in enumerate(args)]


def needs(ctx: Any) -> Sequence[Any]:
    """For each argument whether its gradient is needed; a list for a list."""
    return ctx.nested_needs if hasattr(ctx, "nested_needs") else ctx.needs_input_grad


def call(namespace: str, op: str, *args: Any) -> Any:
    """`torch.ops.<namespace>.<op>(*args)`, with its derivative recorded.

    Raises:
        RuntimeError: an argument carries a tangent; what the operator refuses.
    """
    if torch.compiler.is_compiling():
        return getattr(getattr(torch.ops, namespace), op)(*args)
    if forward_ad._current_level >= 0:  # where tangents may be: torch would drop them in silence
        _refuse_tangents(op, args)
    try:
        return _called(namespace, op, args)
    except RuntimeError as error:
        raise _cause(error) from None


def _refuse_tangents(op: str, args: tuple) -> None:
    for tensor in tree_leaves(args):
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{op}: wanted tensors without tangents, got one with: only backend='reference' is differentiated "
                "forward (torch.func.jvp, torch.autograd.forward_ad)"
            )


def _called(namespace: str, op: str, args: tuple) -> Any:
    rule = _RULES.get((namespace, op))
    if rule is None or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
        return getattr(getattr(torch.ops, namespace), op)(*args)
    if torch.is_autocast_enabled("cuda"):
        args = tuple(_lowered(args, rule.derivative))
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
        ctx.rule, ctx.kernels, ctx.structure = rule, rule.kernels, structure
        ctx.nested_needs = _nested(structure, ctx.needs_input_grad[2:])
        rule.derivative.setup_context(ctx, tuple(args), out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        flat: list[Tensor | None] = [None, None]
        try:
            made = ctx.rule.derivative.backward(ctx, *grads)
        except RuntimeError as error:
            raise _cause(error) from None
        for length, grad in zip(ctx.structure, made, strict=True):
            if length == _ONE:
                flat.append(grad)
            else:
                flat += grad
        return tuple(flat)
