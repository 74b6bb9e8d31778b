"""Launches and bytes of the operators on CUDA, for `cuda_static.py`: ours on the emulator, beside PyTorch's operations.

Ours are counted while they run on the emulator: bytes that threads ask for, and distinct ones. PyTorch's are computed:
an operation of the fastest eager form (BatchNorm folded in) is a launch, which reads its inputs and writes its output
once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu_clock import StandIn
from benchmarks.gpu_operators import OPERATORS
from dynroute.runtime.cuda.launch_list import DeviceLimits
from tests.support.cuda.operators import emulated

C, H, W = 64, 32, 64


class Traffic(TorchDispatchMode):
    """Counts torch's operations that compute, and the bytes of their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace != "dynroute":
            moved = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.launches += 1
            self.bytes += sum(tensor.nbytes for tensor in moved)
        return out


def operators(limits: DeviceLimits, dtype: torch.dtype = torch.float16) -> list[dict[str, Any]]:
    """A row for each operator."""
    rows = []
    for op, make in OPERATORS.values():
        arguments, eager = make(StandIn(), dtype, C, H, W)
        statistics: list[tuple[str, dict[str, Any]]] = []
        emulated(op, *arguments, limits=limits, statistics=statistics, counters=True)
        with Traffic() as traffic, torch.no_grad():
            eager()
        rows.append({
            "operator": op, "shape": [1, C, H, W], "dtype": str(dtype),
            "ours": {
                "kind": "emulated", "launches": len(statistics),
                "asked_bytes": sum(found["gld_bytes"] + found["gst_bytes"] for _, found in statistics),
                "distinct_bytes": sum(found["gld_unique_bytes"] + found["gst_unique_bytes"] for _, found in statistics),
            },
            "eager": {"kind": "computed", "launches": traffic.launches, "bytes": traffic.bytes},
        })  # fmt: skip
    return rows
