"""The host's launch shapes (csrc/cuda/<name>.h, plain C++) called from tests: g++ builds each once per process."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

from dynroute.runtime import emulator


class LaunchShape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("blocks", "threads", "shared")]


class DeviceLimits(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in ("capability", "multiprocessors", "shared_per_block", "shared_per_multiprocessor")
    ]


A100 = DeviceLimits(80, 108, 163 << 10, 164 << 10)
H100 = DeviceLimits(90, 132, 227 << 10, 228 << 10)
SMALL = DeviceLimits(86, 1, 99 << 10, 100 << 10)  # one multiprocessor: few blocks take all the tiles
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # numbered as in params.h


@functools.cache
def _function(name: str):
    struct = f"{name.capitalize()}Params"
    source = f"""
        #include "{emulator.SOURCES / (name + ".h")}"
        using namespace dynroute::cuda;
        extern "C" void shape(const {struct}* params, int dtype, const DeviceLimits* device, LaunchShape* shape) {{
          *shape = {name}_shape(*params, DType(dtype), *device);
        }}
        extern "C" int size() {{ return sizeof({struct}); }}"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shape.cpp"
        path.write_text(source)
        library = path.with_suffix(".so")
        flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC"]
        subprocess.run(["g++", *flags, str(path), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))


def shape(name: str, params: ctypes.Structure, dtype: torch.dtype, device: DeviceLimits = SMALL):
    """(blocks, threads, shared bytes) as emulator.launch wants them."""
    library = _function(name)
    assert library.size() == ctypes.sizeof(params)
    result = LaunchShape()
    library.shape(ctypes.byref(params), DTYPES.index(dtype), ctypes.byref(device), ctypes.byref(result))
    assert result.shared <= device.shared_per_block
    return result.blocks, result.threads, result.shared
