"""A training operator on some of a batch's samples, for tests of several processes that share its BatchNorms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dynroute import ops
from tests.support import cases
from tests.support.trees import copies, leaves, to

F64 = torch.float64
N = 4  # samples of the whole batch
MASK = torch.tensor([True, False, True, True])  # with the split (0, 2, ..) or (0, 1, ..) a process may have none open
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


def trained(
    op: str, options: dict[str, Any], rows: slice, group: str, backend: str, dtype: torch.dtype = F64
) -> list[list[Tensor]]:
    """For some samples: what is there for each of them; running statistics; gradients of weights, to be summed."""
    args, options = inputs(op, options)
    args = to(args, dtype)
    rowed = BY_SAMPLE[op]
    given = [copies(a[rows] if i < rowed else a, i < TRAINS[op]) for i, a in enumerate(args)]
    if options.get("open") is not None:
        options["open"] = options["open"][rows]
    run = gate_train if op == "gate_train" else getattr(ops, op)
    outputs = leaves(run(*given, **options, group=group, backend=backend))
    loss = torch.zeros((), dtype=dtype)
    for i, out in enumerate(outputs):
        loss = loss + (out * cases.normal(N, *out.shape[1:], dtype=dtype, seed=7 + i)[rows]).sum()
    wanted = leaves(given[: TRAINS[op]])
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    own = [*(out.detach() for out in outputs), *gradients[:rowed]]
    return [own, leaves(given[TRAINS[op] :]), list(gradients[rowed:])]
