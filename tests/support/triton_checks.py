"""Triton's kernels by their PTX, on the emulator, against float64: `python -m tests.support.triton_checks OPERATOR`.

In a process of its own, without TRITON_INTERPRET. Odd sizes and such as 16 divides, masks, memory that is NaN before;
accesses out of bounds and races raise, threads run in random order, arguments have to stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from dynroute.ops import reference
from dynroute.ops.triton import configs
from tests.support import cases
from tests.support.cuda import trained
from tests.support.rounding import check_result
from tests.support.trees import copies, leaves
from tests.support.triton_cases import SOME, call, in_type
from tests.support.triton_launch import emulated

Arguments = Iterator[tuple[Any, ...]]


def closed_is_nan(x: Tensor, *others: Any) -> tuple[Any, ...]:
    """The arguments with what `SOME` leaves out filled with NaN: it must not be read."""
    x[~SOME] = torch.nan
    return x, *others


def sepconv(dtype: torch.dtype) -> Arguments:
    yield *closed_is_nan(*cases.sepconv(2, 32, 5, 7, 2, dtype=dtype)), SOME, 1, True, True
    yield *cases.sepconv(2, 24, 9, 14, 1, 72, dtype), None, 2, False, False
    yield *cases.sepconv(1, 64, 6, 8, 1, dtype=dtype), None, 1, True, False


def transform(dtype: torch.dtype) -> Arguments:
    yield *closed_is_nan(*cases.transform(2, 32, 9, 7, 64, dtype)), SOME, 2
    yield *cases.transform(2, 72, 9, 14, 24, dtype), None, 1
    yield *cases.transform(1, 64, 16, 16, 32, dtype), torch.tensor([True]), 1


def gate(dtype: torch.dtype) -> Arguments:
    yield *closed_is_nan(*cases.gate(2, 32, 14, 17, dtype=dtype)), "tanh", True, SOME
    yield *cases.gate(2, 24, 11, 13, 2, dtype=dtype), "softmax", False, None
    yield *cases.gate(1, 64, 16, 16, 1, dtype=dtype), "sigmoid", False, torch.tensor([True])


def aggregate(dtype: torch.dtype) -> Arguments:
    down, keep, up, alphas = cases.aggregate(2, 32, 6, 10, dtype=dtype)
    alphas[0, 0], up[0] = 0, torch.nan  # a source that weighs nothing is not read
    yield down, keep, up, alphas
    yield cases.aggregate(3, 24, 2, 6, "ku", dtype)
    yield *cases.aggregate(2, 64, 7, 5, "dk", dtype)[:3], None


def route(dtype: torch.dtype) -> Arguments:
    for n in (2, 131):  # a block of samples, and more
        yield cases.route(n)


CHECKS: dict[str, Callable[[torch.dtype], Arguments]] = {
    "sepconv": sepconv, "transform": transform, "gate": gate, "aggregate": aggregate, "route": route,
}  # fmt: skip
THIRD = torch.tensor([True, False, True])
# Training operators, both directions: arguments and options.
TRAINED: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "node_train": (cases.node_train(4, 32, 9, 7), (None, 0.6, True, False, "")),
    "gate_train": (cases.gate_train(3, 24, 13, 10, 2, 16), ("softmax", [1, 2], True, False, "")),
    "sepconv_train": (cases.sepconv_train(3, 16, 7, 5, 2), (THIRD, 1, True, False, False, "")),
    "transform_train": (cases.transform_train(3, 24, 7, 5, 40), (THIRD, 2, True, False, "")),
}


def check(op: str, arguments: tuple[Any, ...]) -> None:
    before = copies(arguments)
    with emulated(order="rand", global_races=True) as launches:
        got = call(op, *arguments)
    assert launches, "nothing was launched"
    for now, then in zip(leaves(arguments), leaves(before), strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True)
    if isinstance(got, Tensor):
        check_result(op, arguments, got)
        return
    for one, wanted in zip(got, getattr(reference, op)(*arguments), strict=True):
        assert torch.equal(one, wanted)


def check_trained(op: str, args: tuple[Any, ...], options: tuple[Any, ...]) -> None:
    with emulated(order="rand", global_races=True) as launches:
        results, gradients, outs = trained.both_directions(op, args, options, call)
    assert launches, "nothing was launched"
    wanted, wanted_gradients = trained.by_reference(op, args, options, outs)
    for i, (got, exact) in enumerate(zip(results + gradients, wanted + wanted_gradients, strict=True)):
        assert got.shape == exact.shape
        assert (error := trained.error(got, exact)) <= 4 * torch.finfo(args[0].dtype).eps, (i, error)


def main(op: str) -> int:
    torch.set_num_threads(1)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    configs.forget_tuning()
    if op in TRAINED:
        args, options = TRAINED[op]
        check_trained(op, in_type(args, torch.float16), options)
        return 0
    for arguments in CHECKS[op](torch.float16):
        check(op, arguments)
    for dtype in (torch.bfloat16, torch.float32):
        check(op, next(CHECKS[op](dtype)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
