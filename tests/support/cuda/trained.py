"""A training operator, on the emulator or on a GPU, both directions, beside the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dynroute.ops import reference
from dynroute.space.routing import is_closed, is_path_open
from dynroute.space.wiring import DOWN, UP
from tests.support import cases
from tests.support.cuda.operators import emulated
from tests.support.trees import copies, leaves, to

# How many of an operator's arguments have gradients: the first ones.
DIFFERENTIATED = {"sepconv_train": 5, "transform_train": 4, "node_train": 8}
GATE = (0, 1, 2, 3, 6, 7)  # of gate_train's


def channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


@contextmanager
def given_raw(raws: list[Tensor]) -> Iterator[None]:
    """Within it the reference, told to be narrow, goes on with these raw outputs instead of its own.

    So no ReLU's sign hangs on how a product was rounded, and what is left is what the operator makes of them.
    """
    there, left = reference._narrowed, iter(raws)
    reference._narrowed = lambda raw: raw + (next(left).double() - raw).detach()
    try:
        yield
    finally:
        reference._narrowed = there
    assert next(left, None) is None, "the reference asked for fewer raw outputs"


def raws_of(op: str, args: tuple, options: tuple, outs: tuple) -> list[Tensor]:
    """An operator's raw outputs, in the order and of the samples that the reference makes them for."""
    n = len(args[0])
    if op == "gate_train":
        return [outs[1]]
    if op != "node_train":
        open = options[0] if options[0] is not None else torch.ones(n, dtype=torch.bool)
        return [raw[open] for raw in outs[1].view(-1, n, *outs[1].shape[1:])]
    alphas, skip = args[1], options[2]
    open = ~is_closed(alphas) if skip else torch.ones(n, dtype=torch.bool)
    raws = [raw[open] for raw in outs[3].view(-1, n, *outs[3].shape[1:])]
    for path, raw in ((UP, outs[4]), (DOWN, outs[5])):
        if raw.numel():
            raws.append(raw[open & is_path_open(alphas)[:, path] if skip else open])
    return raws


def differentiated(op: str, args: tuple) -> list[Any]:
    return [args[i] for i in GATE] if op == "gate_train" else list(args[: DIFFERENTIATED[op]])


def visible(op: str) -> int:
    """How many of an operator's results have gradients."""
    return 3 if op == "node_train" else 1


def both_directions(
    op: str, args: tuple, options: tuple, call: Callable[..., tuple] = emulated, **how: Any
) -> tuple[list[Tensor], list[Tensor], tuple]:
    """Results and statistics, and all gradients of a fixed weighting of the results; and the forward's own results.

    args: maps of any of CUDA's types, the rest float32; options: up to `group`; call: what runs an operator by name.
    """
    outs = call(op, *args, *options, 1e-5, False, **how)
    made = outs[: visible(op)]
    grads = [
        channels_last(cases.normal(*out.shape, seed=70 + i).to(out.dtype)) if out.dim() > 1 else None  # no such path
        for i, out in enumerate(made)
    ]
    given = (*args[:4], args[6]) if op == "gate_train" else args[: DIFFERENTIATED[op]]
    kept = outs if op == "gate_train" else outs[visible(op) :]
    wanted = [True] * (3 if op == "sepconv_train" else 2)
    *of_maps, flat = call(f"{op}_backward", *grads, *given, *kept, *options, False, wanted, **how)
    weights = leaves(differentiated(op, args)[len(of_maps) :])
    of_weights = [part.view(w.shape) for part, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
    stats = outs[{"node_train": 6}.get(op, 2)]
    return [*made, stats], [*of_maps, *of_weights], outs


def by_reference(
    op: str, args: tuple, options: tuple, outs: tuple, dtype: torch.dtype = torch.float64, own_raw: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """The same by the reference, in float64 or, with maps and products of 16 bits, as autocast has it.

    own_raw: it goes on with the operator's own raw outputs, `outs` being the forward's results.
    """
    exact = dtype == torch.float64
    given = to(args, torch.float64) if exact else copies(args)
    learnt = leaves([given[i] for i in GATE] if op == "gate_train" else given[: DIFFERENTIATED[op]])
    for leaf in learnt:
        leaf.requires_grad_()
    lowered = torch.autocast("cpu", torch.bfloat16 if exact else dtype, enabled=not exact and dtype != torch.float32)
    with given_raw(raws_of(op, args, options, outs)) if own_raw else nullcontext(), lowered:
        more = to(options, torch.float64) if exact else options
        results = getattr(reference, op)(*given, *more, 1e-5, own_raw)
    made = results[: visible(op)]
    loss = sum(
        (out.double() * cases.normal(*out.shape, seed=70 + i).to(outs[i].dtype).double()).sum()
        for i, out in enumerate(made)
    )
    grads = torch.autograd.grad(loss, learnt, allow_unused=True)
    grads = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(learnt, grads)]
    stats = results[{"node_train": 6}.get(op, 2)]
    return [*(out.detach() for out in made), stats], grads


def far(got: list[Tensor], wanted: list[Tensor]) -> float:
    """The root mean square of tensors' distances, each as a share of the wanted one's norm."""
    shares = [
        (((g.double() - w).norm() / w.norm()) ** 2).item() for g, w in zip(got, wanted, strict=True) if w.norm() > 0
    ]
    return (sum(shares) / len(shares)) ** 0.5


def error(got: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value wanted; NaN where something was not written."""
    if not wanted.numel():
        return 0.0
    return ((got.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3)).item()
