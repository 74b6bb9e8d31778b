"""BatchNorm over several processes: each operator on parts of a batch against the whole batch in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dynroute import ops
from dynroute.native import library
from dynroute.ops import synchronise
from tests.support import cases
from tests.support.ranks import together
from tests.support.synchronised import MASK, N, trained

needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
# Where each process's samples begin; for more than one split: uneven, and processes without any sample.
SPLITS = {2: [(0, 2, 4), (0, 1, 4), (0, 0, 4), (0, 4, 4)], 3: [(0, 1, 2, 4), (0, 0, 3, 4)]}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sepconv_train", {"residual": True, "final_relu": True}),
    ("sepconv_train", {"open": MASK, "stride": 2}),
    ("sepconv_train", {"open": ~MASK}),
    ("sepconv_train", {"open": torch.zeros(N, dtype=torch.bool)}),
    ("sepconv_train", {"frozen": True}),
    ("transform_train", {"stride": 2}),
    ("transform_train", {"open": ~MASK, "relu_input": False}),
    ("gate_train", {"small": False}),
    ("gate_train", {"small": True, "activation": "sigmoid"}),
    ("gate_train", {"small": False, "frozen": True}),
    ("node_train", {}),
    ("node_train", {"skip": True}),
    ("node_train", {"skip": True, "bridge": 0.6}),
    ("node_train", {"skip": True, "frozen": True}),
    ("node_train", {"skip": True, "only": 3}),  # one sample open: all other processes have none
    ("node_train", {"skip": True, "only": None}),
    ("node_train", {"paths": "d", "skip": True}),
    ("node_train", {"paths": ""}),
]


def work(rank: int, processes: int, backends: Sequence[str]) -> list[Any]:
    results = []
    group = dist.group.WORLD.group_name  # type: ignore[union-attr]
    for split in SPLITS[processes]:
        for op, options in CASES:
            for backend in backends:
                results.append(trained(op, options, slice(split[rank], split[rank + 1]), group, backend))
    with pytest.raises(ValueError, match=r"group: wanted the name of a process group of torch.distributed, got 'no'"):
        trained("node_train", {}, slice(0, 1), "no", "cpu")
    assert synchronise.failure() is None
    check_gathers(slice(split[rank], split[rank + 1]), group)
    return results


def check_gathers(rows: slice, group: str) -> None:
    """One for each BatchNorm and direction, one for a node's two paths; the same number with and without samples."""
    real, gathers = synchronise.gathered, []

    def counted(mine: Tensor, group: str) -> Tensor:
        gathers.append(mine.numel())
        return real(mine, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synchronise, "gathered", counted)
        for options, wanted in (
            ({}, [33, 33, 82]),
            ({"skip": True, "only": None}, [33, 33, 82]),
            ({"paths": "d", "only": 3, "skip": True}, [33, 33, 66]),
            ({"paths": ""}, [33, 33]),
            ({"frozen": True}, []),
        ):
            gathers.clear()
            trained("node_train", options, rows, group, "cpu")
            assert gathers == [*wanted, *reversed(wanted)], options


@needs_library
@pytest.mark.parametrize("processes", [2, 3])
def test_parts_of_a_batch_are_the_whole(tmp_path: Path, processes: int) -> None:
    """Kernels and plain PyTorch: outputs, gradients and running statistics; gates may differ as they like."""
    backends = ["cpu", "reference"]
    ranks = together(work, processes, tmp_path / "ranks", backends)
    done = 0
    for split in SPLITS[processes]:
        for op, options in CASES:
            own, running, weights = trained(op, options, slice(0, N), "", "reference")
            for backend in backends:
                results = [results[done] for results in ranks]
                done += 1
                where = f"{op} {options} {backend} {split}"
                same([torch.cat(parts) for parts in zip(*(r[0] for r in results))], own, where)
                same([sum(parts) for parts in zip(*(r[2] for r in results))], weights, where)
                for result in results:
                    same(result[1], running, where)
                    assert all(torch.equal(a, b) for a, b in zip(result[1], results[0][1])), where


def same(actual: list[Any], expected: list[Tensor], where: str) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        scale = max(e.abs().max().item(), 1e-3) if e.numel() else 1.0
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10 * scale, msg=lambda m, i=i: f"{where}: {i}: {m}")


@needs_library
def test_no_group() -> None:
    """Without torch.distributed: one line, from Python, and the operator goes on working afterwards."""
    args = cases.transform_train(2, 16, 7, 6, 8)
    for backend in ("cpu", "reference"):
        with pytest.raises(
            ValueError, match=r"group: wanted the name of a process group of torch.distributed, got '0'"
        ):
            ops.transform_train(*args, group="0", backend=backend)
        ops.transform_train(*args, group="0", frozen=True, backend=backend)
    with pytest.raises(RuntimeError, match="transform_train: group: could not gather from the processes of '0'"):
        torch.ops.dynroute.transform_train(*args, None, 1, True, False, "0", 1e-5, False)
    assert isinstance(synchronise.failure(), ValueError) and synchronise.failure() is None
