"""Calls of the Triton operators that reach all their kernels: by them is found what there is to compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from dynroute.ops.triton import configs, launch
from tests.support import cases
from tests.support.cuda.trained import both_directions, channels_last

SOME = torch.tensor([True, False])  # of two samples
# (channels, height, width): of each cut's channels what 16 divides, as vectors want it; and nothing that it does.
MAPS = (*((c, 32, 64) for c in configs.CLASSES), (24, 62, 50), (56, 62, 50))
# Of training, whose kernels are many, and of what is no matter of channels.
ONE_MAP = (((64, 32, 64),), (torch.float16,))


def call(op: str, *args: Any) -> Any:
    """`torch.ops.dynroute_triton.<op>(*args)`, which is recorded by nobody."""
    from dynroute.ops.triton import operators  # noqa: F401  (importing registers them, and imports Triton)

    with torch.no_grad():
        return getattr(torch.ops.dynroute_triton, op)(*args)


def in_type(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    """A training operator's arguments with maps of a type, the rest float32."""
    return channels_last(args[0].to(dtype)), *args[1:]


class Case(NamedTuple):
    """An operator, asked for everything that there is; a training operator is called in both directions.

    Attributes:
        arguments: of C channels on H x W pixels and a type: the tensors.
        options: what comes behind them.
        maps, types: what to compile it for.
    """

    op: str
    arguments: Callable[[int, int, int, torch.dtype], tuple[Any, ...]]
    options: tuple[Any, ...] = ()
    maps: tuple[tuple[int, int, int], ...] = MAPS
    types: tuple[torch.dtype, ...] = launch.DTYPES

    def run(self, c: int, h: int, w: int, dtype: torch.dtype) -> Any:
        args = self.arguments(c, h, w, dtype)
        if self.op.endswith("_train"):
            return both_directions(self.op, in_type(args, dtype), self.options, call)
        return call(self.op, *args, *self.options)


CASES = (
    Case("sepconv", lambda c, h, w, t: cases.sepconv(2, c, h, w, 1, dtype=t), (SOME, 1, True, True)),
    Case("sepconv", lambda c, h, w, t: cases.sepconv(2, c, h, w, 1, 2 * c, t), (SOME, 2, False, True)),
    Case("transform", lambda c, h, w, t: cases.transform(2, c, h, w, 2 * c, t), (SOME, 2)),
    Case("gate", lambda c, h, w, t: cases.gate(2, c, h, w, dtype=t), ("softmax", True, SOME)),
    Case("aggregate", lambda c, h, w, t: cases.aggregate(2, c, h, w, dtype=t)),
    Case("route", lambda c, h, w, t: cases.route(200), (), *ONE_MAP),
    Case("node_train", lambda c, h, w, t: cases.node_train(2, c, h, w), (None, 0.6, True, False, ""), *ONE_MAP),
    Case("gate_train", lambda c, h, w, t: cases.gate_train(2, c, h, w), ("tanh", [1, 0, 2], True, False, ""), *ONE_MAP),
    Case(
        "sepconv_train", lambda c, h, w, t: cases.sepconv_train(2, c, h, w), (SOME, 1, True, True, False, ""), *ONE_MAP
    ),
    Case(
        "transform_train", lambda c, h, w, t: cases.transform_train(2, c, h, w, c), (SOME, 2, True, False, ""), *ONE_MAP
    ),
    Case(
        "aggregate_backward",
        lambda c, h, w, t: (cases.normal(2, c, h, w, dtype=t), *cases.aggregate(2, c, h, w, dtype=t)),
        ([True] * 4,),
        *ONE_MAP,
    ),
    Case(
        "upsampled_cross_entropy",
        lambda c, h, w, t: cases.upsampled_cross_entropy(2, 19, h, w),
        (4, None, 255, True),
        *ONE_MAP,
    ),
)
