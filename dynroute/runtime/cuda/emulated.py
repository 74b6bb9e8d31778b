"""The CUDA backend without a GPU: the same launch list, kernel by kernel on the emulator.  A developer's tool, very
slow; what it adds are checks of every memory access.  See `dynroute.runtime.cuda.emulator`."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import torch

from dynroute.models.network import DynamicNetwork
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DeviceLimits, LaunchList, read_launches
from dynroute.runtime.cuda.listed import Io, ListedExecutor

NAN = 0xFF  # in every byte: NaN in each floating type, -1 in integers


class EmulatedExecutor(ListedExecutor):
    """See `ListedExecutor`.  Not for several threads.

    Attributes:
        one_workspace: lay the buffers out in one, as on a GPU, rather than apart, where a step over the edge is seen.
        options: of the emulator's launch (order, seed, counters, arch, ...).
        statistics: of the last call, per launch: the kernel's name and what the emulator returned.
    """

    _snapshot = (*ListedExecutor._snapshot, "one_workspace", "options")

    def __init__(
        self,
        net: DynamicNetwork,
        storage: torch.dtype,
        fusion: str = "auto",
        one_workspace: bool = False,
        limits: DeviceLimits = DeviceLimits(),  # noqa: B008 (a tuple)
        **options: Any,
    ) -> None:
        super().__init__(net, storage, torch.device("cpu"), limits, fusion)
        self.one_workspace, self.options = one_workspace, {"arch": f"sm_{limits.capability}", **options}
        self._begin()

    def _begin(self) -> None:
        self.statistics: list[tuple[str, dict[str, Any]]] = []

    def _launch(self, launch_list: LaunchList, io: Io) -> None:
        buffers, size = launch_list.buffers()
        arrays = []  # where each buffer lies
        workspace = _aligned(size)
        for buffer in buffers:
            inside = workspace[buffer.offset : buffer.offset + buffer.bytes]
            arrays.append(inside if self.one_workspace else _aligned(buffer.bytes))
        memory = [workspace] if self.one_workspace else arrays
        weights = emulator.array(self.weights)
        addresses = [array.ctypes.data for array in arrays]
        launches = launch_list.launches(addresses, weights.ctypes.data, self.table)
        outside = {name: emulator.array(tensor) for name, tensor in io._asdict().items() if tensor is not None}
        for name in ("images", "gates"):
            if name in outside:
                outside[name] = outside[name].view()
                outside[name].flags.writeable = False
        weights = weights.view()
        weights.flags.writeable = False
        everything = [array for array in (*memory, *outside.values(), weights) if array.nbytes]

        self.statistics = []
        for launch in read_launches(launches):
            params = launch.params
            if launch.kernel == "init_call":
                params = struct.pack(f"{len(io)}Q", *io.addresses()) + params[8 * len(io) :]
            found = emulator.launch(launch.kernel, self.storage, params, launch[1:4], everything, **self.options)
            self.statistics.append((launch.kernel, found))


def _aligned(size: int) -> np.ndarray[Any, Any]:
    """uint8 [size] at a multiple of 256, all NaN: nothing may count on what it holds."""
    memory = np.full(size + 256, NAN, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size]
