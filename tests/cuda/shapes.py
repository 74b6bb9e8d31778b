"""What csrc/cuda/<name>.h says about a launch, asked as the host does: in C++, without CUDA."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from dynroute.runtime.emulator import SOURCES

DTYPES = [torch.float32, torch.float16, torch.bfloat16]  # DType


class DeviceLimits(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in ("capability", "multiprocessors", "shared_per_block", "shared_per_multiprocessor")
    ]


A100 = DeviceLimits(80, 108, 163 << 10, 164 << 10)
SMALL = DeviceLimits(86, 84, 99 << 10, 100 << 10)  # sm_86 and sm_89
H100 = DeviceLimits(90, 132, 227 << 10, 228 << 10)


@functools.cache
def _function(name: str) -> Any:
    params = f"{name.title().replace('_', '')}Params" if name != "stem_conv" else "StemParams"
    header = "stem" if name == "stem_conv" else name
    code = f"""
#include "{SOURCES}/{header}.h"
using namespace dynroute::cuda;
extern "C" void shape(const {params}* params, int dtype, const DeviceLimits* limits, LaunchShape* out) {{
  *out = {header}_shape(*params, DType(dtype), *limits);
}}
"""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shape.so"
        command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-x", "c++", "-"]
        subprocess.run([*command, "-o", str(library)], input=code, text=True, check=True)
        return ctypes.CDLL(str(library)).shape


def launch_shape(
    name: str, params: ctypes.Structure, dtype: torch.dtype, limits: DeviceLimits = H100
) -> tuple[int, int, int]:
    """Blocks, threads, bytes of shared memory for kernel `name`."""
    shape = (ctypes.c_int * 3)()
    _function(name)(ctypes.byref(params), DTYPES.index(dtype), ctypes.byref(limits), shape)
    return shape[0], shape[1], shape[2]
