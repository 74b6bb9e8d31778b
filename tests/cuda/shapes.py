"""The launch shapes of csrc/cuda/<name>.h, compiled by the host's own compiler: so those headers stay plain C++."""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # as in enum class DType
DEVICES = {  # capability, multiprocessors, shared memory per block and per multiprocessor
    "a100": (80, 108, 163 << 10, 164 << 10),
    "rtx4090": (89, 128, 99 << 10, 100 << 10),
    "h100": (90, 132, 227 << 10, 228 << 10),
}


@functools.cache
def library(name: str, more: str = "") -> ctypes.CDLL:
    """<name>_shape as the C function `shape`, and whatever else the test wants to call."""
    struct = "".join(part.capitalize() for part in name.split("_")) + "Params"
    source = f"""
    #include "{name}.h"
    using namespace dynroute::cuda;
    extern "C" void shape(const {struct}* params, int type, const int* limits, int* out) {{
      const DeviceLimits device = {{limits[0], limits[1], limits[2], limits[3]}};
      const LaunchShape shape = {name}_shape(*params, DType(type), device);
      out[0] = shape.blocks, out[1] = shape.threads, out[2] = shape.shared;
    }}
    {more}"""
    folder = Path(tempfile.mkdtemp(prefix="dynroute-"))
    (folder / "shape.cpp").write_text(source)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", f"-I{ROOT / 'csrc' / 'cuda'}"]
    subprocess.run(["g++", *flags, str(folder / "shape.cpp"), "-o", str(folder / "shape.so")], check=True)
    return ctypes.CDLL(str(folder / "shape.so"))


def shape(name: str, params: ctypes.Structure, dtype: torch.dtype, device: str = "a100") -> tuple[int, int, int]:
    """Blocks, threads, bytes of dynamic shared memory."""
    out = (ctypes.c_int * 3)()
    limits = (ctypes.c_int * 4)(*DEVICES[device])
    library(name).shape(ctypes.byref(params), DTYPES.index(dtype), limits, out)
    return tuple(out)
