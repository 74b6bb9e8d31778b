"""Weights into the layouts that kernels read, made once per network.

A k x k convolution is a pointwise one with K index (ky * k + kx) * Cin + c. Depthwise weights become [k * k][C].
Pointwise weights become, for the CPU (every instruction set), panels of 16 output channels, [ceil(Cout/16)][K][16]; for
CUDA one matrix whose sides are padded to multiples of 32, [Cout][K] in 16-bit types, as mma reads it, or [K][Cout] in
float32. What is padded is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16
MATRIX = 32


def pack_pointwise(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Packs [Cout, Cin, k, k] (k = 1: [Cout, Cin] will do) with each output channel times its scale.

    Returns:
        [ceil(Cout/16), k * k * Cin, 16], contiguous, of weight's dtype.
    """
    weight = _as_pointwise(weight, scale)
    weight = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def pack_matrix(weight: Tensor, scale: Tensor | None, storage: torch.dtype) -> Tensor:
    """Packs the same weights for CUDA, rounded to `storage` once, scale included.

    Returns:
        [Cout', K'] of a 16-bit `storage`, [K', Cout'] of float32; both sides in multiples of 32.
    """
    weight = _as_pointwise(weight, scale)
    weight = F.pad(weight, (0, -weight.shape[1] % MATRIX, 0, -weight.shape[0] % MATRIX)).to(storage)
    return (weight.T if storage == torch.float32 else weight).contiguous()


def _as_pointwise(weight: Tensor, scale: Tensor | None) -> Tensor:
    """[Cout, K], each output channel times its scale."""
    if weight.dim() == 4:
        weight = weight.permute(0, 2, 3, 1).flatten(1)
    if weight.dim() != 2:
        raise ValueError(f"pointwise weight: wanted [Cout, Cin] or [Cout, Cin, k, k], got {list(weight.shape)}")
    if scale is not None:
        weight = weight * scale[:, None]
    return weight


def pack_shift(shift: Tensor, multiple: int = PANEL) -> Tensor:
    """Pads [Cout] with zeros to a multiple of 16, or of `multiple`."""
    return F.pad(shift, (0, -shift.shape[0] % multiple)).contiguous()


def pack_depthwise(weight: Tensor) -> Tensor:
    """Packs [C, 1, k, k] to [k * k, C]."""
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise ValueError(f"pack_depthwise: weight: wanted [C, 1, k, k], got {list(weight.shape)}")
    return weight.flatten(1).T.contiguous()
