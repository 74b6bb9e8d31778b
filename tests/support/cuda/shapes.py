"""What csrc/cuda/kernels/<name>.h says about a launch, asked as the host does: in C++, without CUDA."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

from dynroute.runtime.cuda.emulator import INCLUDE
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits
from tests.support.cuda.devices import H100


@functools.cache
def library(name: str, more: str = "") -> ctypes.CDLL:
    """<name>_shape as the C function `shape`, and whatever else the test wants to call."""
    params = "".join(word.capitalize() for word in name.split("_")) + "Params"
    code = f"""
    #include "cuda/kernels/{name}.h"
    using namespace dynroute;
    using namespace dynroute::cuda;
    extern "C" void shape({params}* params, int dtype, const DeviceLimits* limits, LaunchShape* out) {{
      *out = {name}_shape(*params, DType(dtype), *limits);
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
    """Blocks, threads, bytes of shared memory for kernel `name`; fills in what of params host and kernel agree on."""
    shape, device = (ctypes.c_int * 3)(), (ctypes.c_int * 4)(*limits)  # LaunchShape, DeviceLimits
    library(name).shape(ctypes.byref(params), DTYPES.index(dtype), device, shape)
    assert shape[2] <= limits.shared_per_block
    return shape[0], shape[1], shape[2]
