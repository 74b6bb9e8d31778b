"""Weights as struct Matrix wants them, and one stage's weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dynroute.runtime.cuda import emulator
from tests.support.cuda import structs


def padded(channels: int) -> int:
    return -(-channels // 32) * 32


def pack(weight: torch.Tensor, shift: torch.Tensor, beyond: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A rounded [n, k] weight with zeros beyond n and k, in float the other way round; a shift with `beyond` there."""
    n, k = weight.shape
    packed = torch.zeros(padded(n), padded(k), dtype=weight.dtype)
    packed[:n, :k] = weight
    packed_shift = torch.full((padded(n),), float(beyond))
    packed_shift[:n] = shift
    return (packed.T if weight.dtype == torch.float32 else packed).contiguous(), packed_shift


def matrix(weight: int, shift: int, n: int, k: int) -> structs.Matrix:
    """Of what `pack` made, at these addresses."""
    return structs.Matrix(weight, shift, k, n, padded(k), padded(n))


# of the largest value; a 16-bit type rounds the depthwise and the result
STAGE_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class StageWeights:
    """Random weights of one stage, as the kernels want them and as torch does."""

    def __init__(self, c: int, n: int, dtype: torch.dtype):
        self.c, self.n = c, n
        self.depthwise = torch.randn(9, c) / 3
        self.pointwise, self.shift = (torch.randn(n, c) / c**0.5).to(dtype), torch.randn(n)
        self.arrays = [emulator.array(t) for t in (self.depthwise, *pack(self.pointwise, self.shift))]
        for array in self.arrays:
            array.flags.writeable = False

    def matrix(self) -> structs.Matrix:
        return matrix(self.arrays[1].ctypes.data, self.arrays[2].ctypes.data, self.n, self.c)

    def reference(self, x: torch.Tensor, stride: int, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
        """x, residual [n, h, w, c] -> the same in float64."""
        depthwise = self.depthwise.double().T.reshape(self.c, 1, 3, 3)
        y = F.conv2d(x.double().permute(0, 3, 1, 2), depthwise, stride=stride, padding=1, groups=self.c)
        y = F.conv2d(y, self.pointwise.double()[:, :, None, None], self.shift.double())
        y = y.permute(0, 2, 3, 1)
        if residual is not None:
            y = y + residual.double()
        return y.relu() if relu else y


def is_close(out: torch.Tensor, expected: torch.Tensor) -> bool:
    """Of a stage's result."""
    error = (out.double() - expected).abs().max() / expected.abs().max()
    return bool(error <= STAGE_TOLERANCE[out.dtype])  # false for NaN
