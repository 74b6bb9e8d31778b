"""Weights into the layouts that kernels read, made once per network.

A k x k convolution is a pointwise one with K index (ky * k + kx) * Cin + c. Depthwise weights become [k * k][C].

Pointwise weights become, for the CPU, panels of 16 output channels, [ceil(Cout/16)][K][16]; with AMX most go on from
panels to tiles (csrc/cpu/kernels/tiles.h), in bfloat16: for float32 three parts of each weight, whose sum is exactly
it. For CUDA they become one matrix whose sides are padded to multiples of 32, [Cout][K] in 16-bit types, as mma reads
it, or [K][Cout] in float32. What is padded is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PANEL = 16
TILE_INPUTS = 32
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


def weights_in_tiles(k: int, n: int) -> bool:
    """Whether the chosen kernels read the weights of a product of k inputs and n outputs in tiles."""
    return torch.ops.dynroute.weights_in_tiles(k, n)


def split_bf16(values: Tensor) -> list[Tensor]:
    """Three bfloat16 tensors whose sum is exactly `values` (float32): each the upper half of what is left."""
    parts = []
    for _ in range(3):
        upper = (values.contiguous().view(torch.int32) & -0x10000).view(torch.float32)
        parts.append(upper.to(torch.bfloat16))
        values = values - upper
    return parts


def pack_tiles(panels: Tensor, storage: torch.dtype) -> Tensor:
    """Packs `pack_pointwise`'s panels [P, K, 16] to tiles.

    Returns:
        bfloat16 [P, ceil(K/32), parts, 16, 16, 2]: pairs of inputs by output channel by the two of the pair. float32:
        three parts, inputs i and i + 16 of a block of 32 are a pair; bfloat16: one part, pairs are neighbours.
    """
    panels = F.pad(panels.to(torch.float32), (0, 0, 0, -panels.shape[1] % TILE_INPUTS))
    blocks = panels.unflatten(1, (-1, TILE_INPUTS))  # [P, blocks, 32, 16]
    if storage == torch.bfloat16:
        parts, pairs = [blocks.to(torch.bfloat16)], (PANEL, 2)
    else:
        parts, pairs = split_bf16(blocks), (2, PANEL)
    tiles = torch.stack(parts, 2).unflatten(3, pairs)  # [P, blocks, parts, ..., 16]
    of_pair = 4 if storage == torch.bfloat16 else 3
    return tiles.movedim(of_pair, -1).contiguous()


def pack_weights(weight: Tensor, scale: Tensor | None = None, storage: torch.dtype = torch.float32) -> Tensor:
    """Packs [Cout, Cin, k, k] as the chosen kernels read it, kept in `storage`.

    Returns:
        float32 of any shape, contiguous; two bfloat16 values lie where one float would.
    """
    panels = pack_pointwise(weight, scale).to(storage)
    packed = pack_tiles(panels, storage) if weights_in_tiles(panels.shape[1], weight.shape[0]) else panels
    return packed.view(torch.float32) if packed.dtype == torch.bfloat16 else packed


def pack_shift(shift: Tensor, multiple: int = PANEL) -> Tensor:
    """Pads [Cout] with zeros to a multiple of 16, or of `multiple`."""
    return F.pad(shift, (0, -shift.shape[0] % multiple)).contiguous()


def pack_depthwise(weight: Tensor) -> Tensor:
    """Packs [C, 1, k, k] to [k * k, C]."""
    if weight.dim() != 4 or weight.shape[1] != 1:
        raise ValueError(f"pack_depthwise: weight: wanted [C, 1, k, k], got {list(weight.shape)}")
    return weight.flatten(1).T.contiguous()
