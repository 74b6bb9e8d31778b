"""How the Triton kernels' work is cut, by operator, channels and type."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from dynroute.ops.triton.launch import interpreted


class Cut(NamedTuple):
    """A program's pixels, output channels and step through the input's; its warps, and loads on their way."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3

    def tile(self) -> dict[str, Any]:
        """What a kernel over pixels and channels is launched with."""
        return {
            "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }  # fmt: skip

    def product(self) -> dict[str, Any]:
        """What a product is launched with."""
        return {**self.tile(), "BLOCK_K": self.block_k, "WIDE": interpreted()}


def find(op: str, channels: int, dtype: torch.dtype) -> Cut:
    """The cut of an operator on maps of so many channels."""
    narrow, wide = channels <= 32, dtype == torch.float32
    if op == "aggregate":
        return Cut(32, 32, 16)
    if op == "sepconv":  # nine pixels on their way for each
        return Cut(32, 32 if narrow else 64, 16, 4 if narrow else 8, 2)
    return Cut(32 if wide else 64, 32 if narrow else 64, 16 if wide or narrow else 32, 4 if narrow or wide else 8)
