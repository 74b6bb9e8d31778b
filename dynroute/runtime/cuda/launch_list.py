"""A call of the CUDA network as data: its buffers and its list of launches, made on the host without a GPU; and the one
way to the device.  Whatever of CUDA crosses into C++ crosses here."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dynroute.native.contract import ConfigNumbers

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FUSIONS = ("auto", "fused", "staged")
# struct Record of csrc/cuda/network/records.h: name, blocks, threads, shared bytes, bytes of parameters
_RECORD = struct.Struct("32siiii")


class DeviceLimits(NamedTuple):
    """What a launch list has to know of a GPU; by default an A100.

    Attributes:
        capability: 10 * major + minor.
        multiprocessors: how many there are.
        shared_per_block: bytes a block may have, with opt-in.
        shared_per_multiprocessor: bytes that the blocks of one share.
    """

    capability: int = 80
    multiprocessors: int = 108
    shared_per_block: int = 163 << 10
    shared_per_multiprocessor: int = 164 << 10

    @staticmethod
    def of(device: torch.device) -> DeviceLimits:
        """Those of a CUDA device; the CUDA library asks it."""
        return DeviceLimits(*torch.ops.dynroute.cuda_limits(device.index))


class Buffer(NamedTuple):
    """Memory the launches use.

    Attributes:
        name: for errors.
        bytes: its size.
        offset: in the one workspace, where buffers may overlap that are never in use at once.
    """

    name: str
    bytes: int
    offset: int


class Launch(NamedTuple):
    """A kernel's name without its type's suffix, how it is launched, and its parameter struct."""

    kernel: str
    blocks: int
    threads: int
    shared: int
    params: bytes


@dataclass(frozen=True)
class LaunchList:
    """One call of a network at one shape; see csrc/cuda/network/launch_list.h.

    Attributes:
        config: of the network.
        image: n, h, w, out_h, out_w.
        dtype: what maps and pointwise weights are stored in.
        fusion: of cells of two stages, one of FUSIONS: "auto" fuses scales where it pays, "fused" where a tile fits,
            "staged" none.
        device: limits of the GPU.
    """

    config: ConfigNumbers
    image: Sequence[int]
    dtype: torch.dtype
    fusion: str = "auto"
    device: DeviceLimits = DeviceLimits()  # noqa: RUF009 (a tuple)

    @property
    def _numbers(self) -> tuple[list[int], list[int], int, int, list[int]]:
        return list(self.config), list(self.image), DTYPES.index(self.dtype), FUSIONS.index(self.fusion), [*self.device]

    def buffers(self) -> tuple[list[Buffer], int]:
        """The buffers, and the bytes of a workspace that holds them."""
        names, sizes, workspace = torch.ops.dynroute.cuda_plan(*self._numbers)
        return [Buffer(name, *size) for name, size in zip(names.split(), sizes.tolist(), strict=True)], workspace

    def launches(self, addresses: Sequence[int], weights: int, table: Tensor) -> Tensor:
        """The launches for buffers at these addresses, as bytes.

        Args:
            addresses: of each buffer, in their order.
            weights: address of the packed weights.
            table: int64, offsets into them in bytes.
        """
        return torch.ops.dynroute.cuda_launches(*self._numbers, list(addresses), weights, table)


def run_launches(
    workspace: Tensor, launches: Tensor, dtype: torch.dtype, first: int, last: int, io: Sequence[int]
) -> None:
    """Launches numbers `first` to `last` - 1 of a list on the current stream, without waiting.

    Args:
        workspace: whose device it is.
        launches: uint8, what `LaunchList.launches` made.
        dtype: what maps and pointwise weights are stored in.
        first: number of the first launch.
        last: behind the last one; may be beyond the list.
        io: addresses of a call's inputs and outputs (`listed.Io`), for launch 0; empty where that is not launched.

    Raises:
        RuntimeError: what CUDA says, with the kernel's name and how it was launched.
    """
    torch.ops.dynroute.cuda_run(workspace, launches, DTYPES.index(dtype), first, last, list(io))


def read_launches(launches: Tensor) -> list[Launch]:
    """The list that `LaunchList.launches` made, taken apart."""
    data, at, found = launches.numpy().tobytes(), 0, []
    while at < len(data):
        name, blocks, threads, shared, size = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        found.append(Launch(name.rstrip(b"\0").decode(), blocks, threads, shared, data[at : at + size]))
        at += size
    return found
