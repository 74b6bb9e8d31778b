"""CUDA kernels without a GPU: nvcc's PTX, run on the CPU by tools/ptxsim.  A developer's tool: slow, and exact about
memory (out-of-bounds accesses, races, reads of copies in flight).

Nothing here says how fast a GPU would be: what it counts (bytes, sectors, bank conflicts) is emulated, never measured.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
INCLUDE = ROOT / "csrc"
SOURCES = INCLUDE / "cuda" / "kernels"
SUFFIX = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def why_not() -> str | None:
    """None if kernels can be emulated here, else the reason in one line."""
    if not (ROOT / "tools" / "ptxsim").is_dir() or not SOURCES.is_dir():
        return "needs a source checkout (csrc, tools/ptxsim)"
    for tool in ("nvcc", "g++"):
        if shutil.which(tool) is None:
            return f"{tool} was not found"
    return None


@functools.cache
def _ptxsim() -> Any:
    sys.path.insert(0, str(ROOT / "tools" / "ptxsim"))
    return importlib.import_module("ptxsim")


@functools.cache
def ptx(kernel: str, dtype: torch.dtype, arch: str = "sm_80") -> str:
    """PTX of csrc/cuda/kernels/<kernel>.cu for one storage type."""
    define = f"-DDYNROUTE_DTYPE_{SUFFIX[dtype].upper()}"
    return _ptxsim().nvcc(SOURCES / f"{kernel}.cu", arch, ["-std=c++17", f"-I{INCLUDE}", define])


@functools.cache
def module(kernel: str, dtype: torch.dtype, arch: str = "sm_80") -> Any:
    """csrc/cuda/kernels/<kernel>.cu, ready to run."""
    return _ptxsim().load(ptx(kernel, dtype, arch))


def array(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The same memory as a numpy array; 16-bit types as their bits."""
    tensor = tensor.detach()
    assert tensor.is_contiguous()
    return (tensor.view(torch.int16) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def launch(
    kernel: str,
    dtype: torch.dtype,
    params: bytes,
    shape: tuple[int, int, int],
    buffers: Sequence[np.ndarray[Any, Any]],
    arch: str = "sm_80",
    **options: Any,
) -> dict[str, Any]:
    """Runs a kernel with a params struct.

    Args:
        kernel: its name without its type's suffix, and its file's in csrc/cuda/kernels.
        dtype: storage type.
        params: the struct's bytes; its pointers point into `buffers`.
        shape: blocks, threads per block, bytes of dynamic shared memory.
        buffers: everything the kernel may touch; set `flags.writeable = False` on what it must not write.
        options: of ptxsim's launch (races, global_races, order, seed, resident, counters).

    Returns:
        ptxsim's statistics.
    """
    blocks, threads, shared = shape
    options.setdefault("races", "raise")
    return module(kernel, dtype, arch).launch(
        f"{kernel}_{SUFFIX[dtype]}", blocks, threads, [params], smem=shared, extra_buffers=list(buffers), **options
    )
