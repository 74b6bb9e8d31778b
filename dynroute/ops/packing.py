"""Weights into the layouts the CPU kernels read: the same for every instruction set, made once per network.

Pointwise weights become panels of 16 output channels, [ceil(Cout/16)][K][16], columns beyond Cout zero; a k x k
convolution is a pointwise one with K index (ky * k + kx) * Cin + c. Depthwise weights become [k * k][C].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

PANEL = 16


def pack_pointwise(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Packs [Cout, Cin, k, k] (k = 1: [Cout, Cin] will do) with each output channel times its scale.

    Returns:
        [ceil(Cout/16), k * k * Cin, 16], contiguous, of weight's dtype.
    """
    if weight.dim() == 4:
        weight = weight.permute(0, 2, 3, 1).flatten(1)
    if weight.dim() != 2:
        raise ValueError(f"pack_pointwise: weight: wanted [Cout, Cin] or [Cout, Cin, k, k], got {list(weight.shape)}")
    if scale is not None:
        weight = weight * scale[:, None]
    weight = F.pad(weight, (0, 0, 0, -weight.shape[0] % PANEL))
    return weight.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def pack_shift(shift: Tensor) -> Tensor:
    """Pads [Cout] with zeros to a multiple of 16."""
    return F.pad(shift, (0, -shift.shape[0] % PANEL)).contiguous()


def pack_depthwise(weight: Tensor) -> Tensor:
    """Packs [C, 1, k, k] to [k * k, C]."""
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise ValueError(f"pack_depthwise: weight: wanted [C, 1, k, k], got {list(weight.shape)}")
    return weight.flatten(1).T.contiguous()
