"""BatchNorm over several processes on CUDA's operators, by the emulator: parts of a batch are the whole."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dynroute.native import library
from dynroute.runtime.cuda import emulator
from tests.support import synchronised
from tests.support.cuda.training import emulated_operators
from tests.support.ranks import together

REASON = library.why_not_loaded() or emulator.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
SPLITS = [(0, 1, 4), (0, 4, 4)]  # the second leaves a process without samples
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sepconv_train", {"open": synchronised.MASK, "stride": 2}),
    ("transform_train", {"stride": 2}),
    ("gate_train", {"small": True, "activation": "sigmoid"}),
    ("node_train", {"skip": True, "bridge": 0.6}),
    ("node_train", {"skip": True, "frozen": True}),
]


def trained(op: str, options: dict[str, Any], rows: slice, group: str) -> list[list[Tensor]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with emulated_operators():
            return synchronised.trained(op, options, rows, group, "cuda", torch.float32)


def work(rank: int, processes: int) -> list[Any]:
    group = dist.group.WORLD.group_name  # type: ignore[union-attr]
    return [
        trained(op, options, slice(split[rank], split[rank + 1]), group) for split in SPLITS for op, options in CASES
    ]


def test_parts_of_a_batch_are_the_whole(tmp_path: Path) -> None:
    whole = [trained(op, options, slice(0, synchronised.N), "") for op, options in CASES]  # and kernels are compiled
    ranks = together(work, 2, tmp_path / "ranks")
    for number, results in enumerate(zip(*ranks)):
        own, running, weights = whole[number % len(CASES)]
        where = str(CASES[number % len(CASES)])
        close([torch.cat(parts) for parts in zip(*(r[0] for r in results))], own, where)
        close([sum(parts) for parts in zip(*(r[2] for r in results))], weights, where)
        for result in results:
            close(result[1], running, where)
            assert all(torch.equal(a, b) for a, b in zip(result[1], results[0][1])), where


def close(actual: list[Any], expected: list[Tensor], where: str) -> None:
    for a, e in zip(actual, expected, strict=True):
        scale = max(e.abs().max().item(), 1e-3) if e.numel() else 1.0
        torch.testing.assert_close(a, e, rtol=0, atol=5e-6 * scale, msg=lambda m: f"{where}: {m}")
