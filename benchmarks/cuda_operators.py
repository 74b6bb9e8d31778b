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

from benchmarks import gpu_operators
from benchmarks.gpu_clock import StandIn
from dynroute.runtime.cuda.launch_list import DeviceLimits
from tests.support.cuda.operators import emulated

C, H, W = 64, 32, 64


class Traffic(TorchDispatchMode):
    """Counts operations that compute, and the bytes of their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            moved = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.launches += 1
            self.bytes += sum(tensor.nbytes for tensor in moved)
        return out


def arguments(op: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """As `gpu_operators` makes them, for the operator's schema."""
    gpu = StandIn()

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return gpu_operators.random(gpu, dtype, *shape, scale=scale)

    x, one = random(1, C, H, W), torch.ones(C, dtype=dtype)
    if op == "sepconv":
        depthwise, pointwise = [random(C, 1, 3, 3)] * 2, [random(C, C, 1, 1, scale=C**-0.5)] * 2
        return x, depthwise, pointwise, [one, one], [one, one], None, 1, True, True
    if op == "transform":
        return x, random(2 * C, C, 1, 1, scale=C**-0.5), *[torch.ones(2 * C, dtype=dtype)] * 2, None, 2
    if op == "gate":
        half = torch.ones(C // 2, dtype=dtype)
        fc = random(3, C // 2, 1, 1), torch.ones(3, dtype=dtype)
        return x, random(C // 2, C, 1, 1, scale=C**-0.5), half, half, *fc, "tanh", False, None
    return x, x, random(1, C, H // 2, W // 2), torch.tensor([[0.5, 0.8, 0.3]], dtype=dtype)


def operators(limits: DeviceLimits, dtype: torch.dtype = torch.float16) -> list[dict[str, Any]]:
    """A row for each operator."""
    eager = {
        "sepconv": gpu_operators.cell, "transform": gpu_operators.down, "gate": gpu_operators.gate,
        "aggregate": gpu_operators.aggregate,
    }  # fmt: skip
    rows = []
    for op, make in eager.items():
        statistics: list[tuple[str, dict[str, Any]]] = []
        emulated(op, *arguments(op, dtype), limits=limits, statistics=statistics, counters=True)
        plain = make(StandIn(), dtype, C, H, W)[1]
        with Traffic() as traffic, torch.no_grad():
            plain()
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
