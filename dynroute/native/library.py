"""Loading of the native libraries. The package works without them, on the reference backend.

``DYNROUTE_LIBRARY`` names another library file to load instead of the package's own, e.g. the one that `make sanitize`
builds. It is loaded or the import fails: whoever names a library must not be given the reference backend unnoticed.
``DYNROUTE_CPU_ISA`` (portable, avx2, avx512, amx, neon) holds the library to one instruction set; without it the best
of the machine is used.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from dynroute.native.contract import differences, read_contract
from dynroute.version import __version__

_named = os.environ.get("DYNROUTE_LIBRARY")
LIBRARY = Path(_named) if _named else Path(__file__).parents[1] / "lib" / "libdynroute_cpu.so"


def _load() -> str | None:
    if not LIBRARY.is_file():
        if _named:
            raise ImportError(f"DYNROUTE_LIBRARY: there is no file {LIBRARY}")
        return f"{LIBRARY} is missing: build it with `pip install --no-build-isolation -e .`"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        if _named:
            raise ImportError(f"DYNROUTE_LIBRARY: {LIBRARY} does not load: {error}") from error
        return f"{LIBRARY} does not load: {error}"
    try:
        described = read_contract()
    except AttributeError:  # so old that it says nothing of itself
        described = {}
    reason = _why_not_ours(described)
    if reason is not None and _named:
        raise ImportError(f"DYNROUTE_LIBRARY: {reason}")
    if reason is None:
        try:
            torch.ops.dynroute.build_info()
        except RuntimeError as error:  # DYNROUTE_CPU_ISA names what does not run here
            return str(error)
    return reason


def _why_not_ours(described: dict[str, Any]) -> str | None:
    """Why a library that describes its contract so is not this package's, in one line, or None if it is."""
    again = "build it again with `pip install --no-build-isolation -e .`"
    version = described.get("version", "no version that it tells")
    if version != __version__:
        return f"{LIBRARY} is of version {version}, this is dynroute {__version__}: {again}"
    found = differences(described)
    return f"{LIBRARY} was built from other sources ({found[0]}): {again}" if found else None


def _load_cuda() -> str | None:
    """Loads the CUDA library, which lies beside the CPU's and is built where nvcc and a torch with CUDA are."""
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA"
    library = LIBRARY.parent / "libdynroute_cuda.so"
    if not library.is_file():
        return f"{library} is missing: install nvcc, then `DYNROUTE_CUDA=ON pip install --no-build-isolation -e .`"
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        return f"{library} does not load: {error}"
    return None


_reason = _load()
_cuda_reason = _load_cuda() if _reason is None else _reason


def why_not_loaded() -> str | None:
    """Why the native CPU kernels cannot be used, in one line, or None if they can."""
    return _reason


def is_cuda_loaded() -> bool:
    """Whether the CUDA library is, with or without a GPU."""
    return _cuda_reason is None


def why_not_cuda() -> str | None:
    """Why the CUDA kernels cannot be used, in one line, or None if they can; torch is asked for a GPU each time."""
    if _cuda_reason is not None:
        return _cuda_reason
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"wanted a GPU of compute capability 8.0 or higher, this one has {major}.{minor}"
    return None


def build_info() -> dict[str, Any]:
    """The compiler, its flags, the instruction sets compiled in, the one chosen and why, and the torch ABI version.

    Raises:
        RuntimeError: the library is not loaded.
    """
    if _reason is not None:
        raise RuntimeError(_reason)
    return json.loads(torch.ops.dynroute.build_info())


def total_macs() -> int:
    """Multiply-accumulates that the library's kernels have counted in this process, in all calls; 0 without it."""
    return int(torch.ops.dynroute.total_macs()) if why_not_loaded() is None else 0
