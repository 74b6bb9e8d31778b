"""Device memory for kernel tests: tensors that kernels see as separate arrays, so that no access may leave its own."""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from dynroute.runtime.cuda import emulator
from tests.support.cuda import matrices, structs


class Buffers:
    """Owns what a launch may touch."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []

    def read(self, tensor: torch.Tensor) -> int:
        """Address of a tensor that a kernel must not write."""
        array = emulator.array(tensor.clone())
        array.flags.writeable = False
        self.arrays.append(array)
        return array.ctypes.data

    def write(self, tensor: torch.Tensor) -> int:
        """Address of a tensor that a kernel may write; the tensor sees what it wrote."""
        self.arrays.append(emulator.array(tensor))
        return self.arrays[-1].ctypes.data

    def struct(self, value: ctypes.Structure | ctypes.Array) -> int:
        """Address of a struct in device memory."""
        return self.read(torch.frombuffer(bytearray(bytes(value)), dtype=torch.uint8))

    def matrix(self, weight: torch.Tensor, shift: torch.Tensor) -> structs.Matrix:
        """Packs a rounded [n, k] weight."""
        return matrices.matrix(*map(self.read, matrices.pack(weight, shift)), *weight.shape)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def assert_close(got: torch.Tensor, want: torch.Tensor, roundings: float = 2.0) -> None:
    """Compares with a reference in double, as a share of its largest value: 1e-5 in float32, roundings in 16 bits."""
    assert got.shape == want.shape and not got.isnan().any()
    scale = want.abs().max().clamp_min(1e-30)
    error = ((got.double() - want).abs().max() / scale).item()
    unit = {torch.float32: 1e-5, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[got.dtype]
    limit = unit if got.dtype == torch.float32 else roundings * unit
    assert error <= limit, f"largest error {error:.2e} of the largest value, allowed {limit:.2e}"
