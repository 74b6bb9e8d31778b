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

needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
F64 = torch.float64
N = 4  # samples of the whole batch
# Where each process's samples begin; for more than one split: uneven, and processes without any sample.
SPLITS = {2: [(0, 2, 4), (0, 1, 4), (0, 0, 4), (0, 4, 4)], 3: [(0, 1, 2, 4), (0, 0, 3, 4)]}
MASK = torch.tensor([True, False, True, True])  # with the split (0, 2, ..) or (0, 1, ..) a process may have none open

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
# arguments with a row for each sample, and those from the first on with a gradient
BY_SAMPLE = {"sepconv_train": 1, "transform_train": 1, "gate_train": 1, "node_train": 2}
TRAINS = {"sepconv_train": 5, "transform_train": 4, "gate_train": 6, "node_train": 8}


def gate_train(x, weight, gamma, beta, fc_weight, fc_bias, mean, var, **options):  # type: ignore[no-untyped-def]
    """Its arguments with the running statistics last, as the others have them."""
    return ops.gate_train(x, weight, gamma, beta, mean, var, fc_weight, fc_bias, columns=(1, 0, 2), **options)


def inputs(op: str, options: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    options = dict(options)
    if op == "sepconv_train":
        return list(cases.sepconv_train(N, 16, 7, 6, dtype=F64)), options
    if op == "transform_train":
        return list(cases.transform_train(N, 16, 7, 6, 8, dtype=F64)), options
    if op == "gate_train":
        *first, mean, var, fc_weight, fc_bias = cases.gate_train(N, 16, 9, 8, dtype=F64)
        return [*first, fc_weight, fc_bias, mean, var], options
    args = list(cases.node_train(N, 16, 7, 6, paths=options.pop("paths", "ud"), dtype=F64))
    if "only" in options:
        only = options.pop("only")
        args[1] = (
            torch.where((torch.arange(N) == (-1 if only is None else only))[:, None], 0.5, 0.0).double().repeat(1, 3)
        )
    return args, options


def leaves(values: Any) -> list[Tensor]:
    if values is None:
        return []
    return [values] if isinstance(values, Tensor) else [leaf for value in values for leaf in leaves(value)]


def copies(value: Any, trains: bool) -> Any:
    if value is None:
        return None
    return (
        value.clone().requires_grad_(trains)
        if isinstance(value, Tensor)
        else type(value)(copies(v, trains) for v in value)
    )


def trained(op: str, options: dict[str, Any], rows: slice, group: str, backend: str) -> list[list[Tensor]]:
    """For some samples: what is there for each of them; running statistics; gradients of weights, to be summed."""
    args, options = inputs(op, options)
    rowed = BY_SAMPLE[op]
    given = [copies(a[rows] if i < rowed else a, i < TRAINS[op]) for i, a in enumerate(args)]
    if options.get("open") is not None:
        options["open"] = options["open"][rows]
    run = gate_train if op == "gate_train" else getattr(ops, op)
    outputs = leaves(run(*given, **options, group=group, backend=backend))
    loss = torch.zeros((), dtype=F64)
    for i, out in enumerate(outputs):
        loss = loss + (out * cases.normal(N, *out.shape[1:], dtype=F64, seed=7 + i)[rows]).sum()
    wanted = leaves(given[: TRAINS[op]])
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    own = [*(out.detach() for out in outputs), *gradients[:rowed]]
    return [own, leaves(given[TRAINS[op] :]), list(gradients[rowed:])]


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
