"""What csrc/cuda/kernels/<name>.h says about a launch, asked as the host does: in C++, without CUDA."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

from dynroute.runtime.cuda.emulator import INCLUDE

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # as in enum class DType


class DeviceLimits(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in ("capability", "multiprocessors", "shared_per_block", "shared_per_multiprocessor")
    ]


A100 = DeviceLimits(80, 108, 163 << 10, 164 << 10)
SMALL = DeviceLimits(86, 84, 99 << 10, 100 << 10)  # sm_86 and sm_89
ONE = DeviceLimits(86, 1, 99 << 10, 100 << 10)  # of one multiprocessor: few blocks take all the tiles
H100 = DeviceLimits(90, 132, 227 << 10, 228 << 10)


@functools.cache
def library(name: str, more: str = "") -> ctypes.CDLL:
    """<name>_shape as the C function `shape`, and whatever else the test wants to call."""
    header = "stem" if name == "stem_conv" else name
    code = f"""
    #include "cuda/kernels/{header}.h"
    using namespace dynroute::cuda;
    extern "C" void shape(const {header.capitalize()}Params* params, int dtype, const DeviceLimits* limits,
                          LaunchShape* out) {{
      *out = {header}_shape(*params, DType(dtype), *limits);
    }}
    {more}"""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "shape.so"
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-I{INCLUDE}",
            "-shared",
            "-fPIC",
            "-x",
            "c++",
            "-",
        ]
        subprocess.run([*command, "-o", str(made)], input=code, text=True, check=True)
        return ctypes.CDLL(str(made))


def launch_shape(
    name: str, params: ctypes.Structure, dtype: torch.dtype, limits: DeviceLimits = H100
) -> tuple[int, int, int]:
    """Blocks, threads, bytes of shared memory for kernel `name`."""
    shape = (ctypes.c_int * 3)()  # LaunchShape
    library(name).shape(ctypes.byref(params), DTYPES.index(dtype), ctypes.byref(limits), shape)
    assert shape[2] <= limits.shared_per_block
    return shape[0], shape[1], shape[2]


def shape(name: str, params: ctypes.Structure, dtype: torch.dtype) -> tuple[int, int, int]:
    """The same for an A100."""
    return launch_shape(name, params, dtype, A100)
