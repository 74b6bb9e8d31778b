"""Training on the emulator: the operators' kernels of CUDA stand in for those of the CPU, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dynroute.ops import backends
from tests.support.cuda.operators import emulated

DIFFERENTIABLE = ("sepconv_train", "transform_train", "node_train", "gate_train", "aggregate")
ONLY_FORWARD = ("upsampled_cross_entropy",)  # its gradient is made there


@contextmanager
def emulated_operators(launches: list | None = None, **options: Any) -> Iterator[None]:
    """Within it `backend="cuda"` is there for tensors on the CPU; launches: gets (kernel, statistics) of each."""
    library = torch.library.Library("dynroute", "IMPL")
    registry = {op: backends.registered(op) for op in (*DIFFERENTIABLE, *ONLY_FORWARD)}

    def by_emulator(op: str) -> Any:
        return lambda *args: emulated(op, *args, statistics=launches, **options)

    try:
        for op, there in registry.items():
            for name in (op, f"{op}_backward") if op in DIFFERENTIABLE else (op,):
                library.impl(name, by_emulator(name), "CPU", allow_override=True)
            run = backends.cuda_kernels(op).run
            backends.register(op, backends.Backend("cuda", run, backends.anywhere), *there)
        yield
    finally:
        library._destroy()
        for op, there in registry.items():
            backends.register(op, *there)
