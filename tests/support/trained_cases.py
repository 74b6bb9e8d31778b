"""Calls of the training operators that CUDA's kernels and Triton's are both held to, on the emulator or interpreted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.support import cases
from tests.support.cuda.trained import both_directions, by_reference, channels_last, error

SOME = torch.tensor([True, False, True])
# of the largest value; in 16 bits roundings of what lies between products
LIMIT = {torch.float32: 4e-6, torch.float16: 4 * 2.0**-10, torch.bfloat16: 4 * 2.0**-7}


def in_type(args: Any, dtype: torch.dtype) -> tuple:
    """Maps in a storage type, the rest in float32."""
    return channels_last(args[0].to(dtype)), *args[1:]


def check(op: str, args: tuple, options: tuple, call: Callable[..., tuple], times: float = 1, **how: Any) -> None:
    """Results and gradients that `call` makes, against float64: so many times `LIMIT` off at the most."""
    results, gradients, outs = both_directions(op, args, options, call, **how)
    wanted, wanted_gradients = by_reference(op, args, options, outs)
    for kind, got, exact in (("result", results, wanted), ("gradient", gradients, wanted_gradients)):
        for i, (a, b) in enumerate(zip(got, exact, strict=True)):
            assert a.shape == b.shape, (kind, i)
            assert a.dtype == (args[0].dtype if a.dim() == 4 and kind == "result" else a.dtype)
            assert error(a, b) <= times * LIMIT[args[0].dtype], (kind, i, error(a, b))


SEPCONV = [  # n, c, h, w, stages, out, options
    (3, 8, 1, 1, 1, 8, (None, 1, True, True, False, "")),
    (3, 16, 7, 5, 2, 16, (SOME, 1, True, False, False, "")),
    (3, 24, 9, 18, 3, 72, (None, 1, False, True, True, "")),
    (3, 64, 9, 12, 2, 24, (SOME, 2, False, True, False, "")),
    (3, 136, 5, 10, 1, 136, (None, 1, True, True, False, "")),
]
TRANSFORM = [  # n, c, h, w, out, options
    (3, 8, 1, 1, 8, (None, 1, True, False, "")),
    (3, 24, 7, 5, 40, (SOME, 2, True, False, "")),
    (3, 72, 9, 18, 144, (None, 1, False, True, "")),
]
GATE = [  # n, c, h, w, gates, channels, options
    (3, 16, 1, 1, 1, 8, ("tanh", [1], False, False, "")),
    (3, 16, 7, 5, 3, 8, ("tanh", [1, 0, 2], False, False, "")),
    (3, 24, 13, 10, 2, 16, ("softmax", [1, 2], True, False, "")),
    (3, 64, 30, 34, 3, 32, ("sigmoid", [0, 1, 2], False, True, "")),
    (3, 8, 4, 7, 2, 72, ("sigmoid", [2, 0], True, False, "")),
]
FACTOR = torch.tensor([0.0, 2.0, 1.25, 1.25])
NODE = [  # n, c, h, w, stages, paths, options
    (4, 16, 2, 2, 2, "ud", (None, 0.0, False, False, "")),
    (4, 16, 7, 5, 1, "ud", (FACTOR, 0.0, True, False, "")),
    (4, 64, 13, 9, 2, "ud", (None, 0.6, True, False, "")),
    (4, 32, 8, 10, 2, "d", (FACTOR, 0.6, False, False, "")),
    (4, 48, 9, 10, 3, "u", (None, 0.0, True, True, "")),
    (4, 8, 5, 4, 2, "", (None, 0.6, True, False, "")),
]
# Of two samples: closed, open without one path or the other, or open.
PATTERNS = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.4, 0.3], [0.5, 0.0, 0.0], [0.3, 0.2, 0.1]])


def check_no_samples(dtype: torch.dtype, call: Callable[..., tuple]) -> None:
    """Of N = 0: statistics are the running ones, gradients of weights are 0."""
    for op, args, options in (
        ("sepconv_train", cases.sepconv_train(0, 16, 6, 4), (None, 1, True, True, False, "")),
        ("transform_train", cases.transform_train(0, 16, 6, 4, 8), (SOME[:0], 2, True, False, "")),
        ("gate_train", cases.gate_train(0, 16, 6, 4), ("tanh", [0, 1, 2], False, False, "")),
        ("node_train", cases.node_train(0, 16, 6, 4), (None, 0.0, False, False, "")),
    ):
        results, gradients, _ = both_directions(op, in_type(args, dtype), options, call)
        assert all(not r.isnan().any() for r in results) and not results[0].numel()
        assert all((g == 0).all() for g in gradients), op
