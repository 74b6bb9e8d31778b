"""The operators on CUDA by the emulator: what `torch.ops.dynroute.<op>` does with CUDA tensors, of tensors here."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute.ops import synchronise
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.emulated import NAN
from dynroute.runtime.cuda.launch_list import DeviceLimits, read_launches
from tests.support.cuda.devices import A100


def bytes_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor's memory, channels_last or contiguous, with a dimension at least."""
    flat = tensor if tensor.is_contiguous() else tensor.permute(0, 2, 3, 1)
    assert flat.is_contiguous()
    return np.atleast_1d(emulator.array(flat if flat.dtype != torch.bool else flat.view(torch.uint8)))


def emulated(op: str, *args: Any, limits: DeviceLimits = A100, statistics: list | None = None, **options: Any) -> Any:
    """The operator's result or results, after all its launches. What is not an argument is NaN before.

    statistics: gets (kernel, what the emulator returned) of each launch.
    options: of the emulator's launch.
    """
    outs, held, launches = getattr(torch.ops.dynroute, f"cuda_{op}_call")(*args, [*limits])
    buffers = [bytes_of(out) for out in outs]
    for array in buffers:
        array.view(np.uint8)[...] = NAN
    for tensor in held:
        array = bytes_of(tensor)
        if tensor.dtype == torch.uint8:  # scratch
            array[...] = NAN
        else:
            array = array.view()
            array.flags.writeable = False
        buffers.append(array)
    buffers = [array for array in buffers if array.nbytes]
    dtype = next((a.dtype for a in args if isinstance(a, Tensor) and a.dim() == 4), outs[0].dtype)  # of maps
    for launch in read_launches(launches):
        if launch.kernel == "gather":  # between processes, by the same function that C++ calls
            name, mine, everyone, count = struct.unpack("256sQQq", launch.params)
            doubles = ctypes.POINTER(ctypes.c_double)
            done = synchronise._gather(
                name.rstrip(b"\0"), ctypes.cast(mine, doubles), count, ctypes.cast(everyone, doubles), -1
            )
            if not done:
                raise synchronise.failure() or RuntimeError("gather failed")
            continue
        found = emulator.launch(
            launch.kernel, dtype, launch.params, launch[1:4], buffers, f"sm_{limits.capability}", **options
        )
        if statistics is not None:
            statistics.append((launch.kernel, found))
    return outs[0] if len(outs) == 1 else tuple(outs)
