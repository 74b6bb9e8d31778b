"""CUDA's operators on the emulator: their kernels stand in for those of the CPU, in both directions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dynroute.models import fused
from dynroute.ops import backends
from tests.support.cuda.operators import emulated

DIFFERENTIABLE = ("sepconv_train", "transform_train", "node_train", "gate_train", "aggregate")
# The loss's gradient is made there; those of inference are PyTorch's operators.
ONLY_FORWARD = ("upsampled_cross_entropy", "sepconv", "transform", "gate", "route")


@contextmanager
def emulated_operators(
    launches: list | None = None, maps: torch.dtype = torch.float32, **options: Any
) -> Iterator[None]:
    """Within it `backend="cuda"` is there for tensors on the CPU.

    launches: gets (kernel, statistics) of each.
    maps: what the differentiable operators' maps are rounded to on their way in, as autocast does on a GPU.
    """
    library = torch.library.Library("dynroute", "IMPL")
    registry = {op: backends.registered(op) for op in (*DIFFERENTIABLE, *ONLY_FORWARD)}

    def in_type(values: Any, dtype: torch.dtype) -> Any:
        if isinstance(values, Tensor):
            return values.to(dtype) if values.dim() == 4 and values.shape[2:] not in ((1, 1), (3, 3)) else values
        return values

    def by_emulator(op: str) -> Any:
        lowers = maps != torch.float32 and op not in ONLY_FORWARD

        def run(*args: Any) -> Any:
            if not lowers:
                return emulated(op, *args, statistics=launches, **options)
            made = emulated(op, *(in_type(value, maps) for value in args), statistics=launches, **options)
            if isinstance(made, Tensor):
                return in_type(made, torch.float32)
            return tuple(in_type(value, torch.float32) for value in made)

        return run

    is_narrow = fused._is_narrow
    try:
        fused._is_narrow = lambda x, choice: False  # as for maps on a GPU
        for op, there in registry.items():
            for name in (op, f"{op}_backward") if op in DIFFERENTIABLE else (op,):
                library.impl(name, by_emulator(name), "CPU", allow_override=True)
            run = backends.cuda_kernels(op).run
            backends.register(op, backends.Backend("cuda", run, backends.anywhere), *there)
        yield
    finally:
        fused._is_narrow = is_narrow
        library._destroy()
        for op, there in registry.items():
            backends.register(op, *there)
