"""Weights as the kernels read them, and unpacked again."""

from __future__ import annotations

import pytest
import torch

from dynroute.runtime.weights.layouts import pack_pointwise, pack_tiles, split_bf16


def test_parts_add_up_exactly() -> None:
    x = torch.randn(10000, generator=torch.Generator().manual_seed(2)) * 10
    high, middle, low = (part.double() for part in split_bf16(x))
    assert torch.equal(high + middle + low, x.double())


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k, n", [(32, 16), (40, 19), (576, 64)])
def test_tiles_hold_every_weight(k: int, n: int, storage: torch.dtype) -> None:
    """Unpacked again, tile by tile as csrc/cpu/kernels/tiles.h says."""
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(3))
    tiles = pack_tiles(pack_pointwise(weight), storage).float()  # [P, blocks, parts, 16, 16, 2]
    parts = 3 if storage == torch.float32 else 1
    assert tiles.shape == (-(-n // 16), -(-k // 32), parts, 16, 16, 2)
    found = torch.zeros(tiles.shape[0] * 16, tiles.shape[1] * 32)
    for i in range(32):
        pair, half = (i % 16, i // 16) if parts == 3 else (i // 2, i % 2)
        found[:, i::32] = tiles[:, :, :, pair, :, half].sum(2).transpose(1, 2).flatten(0, 1)
    wanted = weight if parts == 3 else weight.bfloat16().float()
    assert torch.equal(found[:n, :k], wanted)
    assert not found[n:].any() and not found[:, k:].any()
