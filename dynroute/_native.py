"""Loading of the native library. The package works without it, on the reference backend.

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

_named = os.environ.get("DYNROUTE_LIBRARY")
LIBRARY = Path(_named) if _named else Path(__file__).parent / "lib" / "libdynroute_cpu.so"


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
        torch.ops.dynroute.build_info()
    except RuntimeError as error:
        return str(error)
    return None


_reason = _load()


def why_not_loaded() -> str | None:
    """Why the native CPU kernels cannot be used, in one line, or None if they can."""
    return _reason


def build_info() -> dict[str, Any]:
    """The compiler, its flags, the instruction sets compiled in, the one chosen and why, and the torch ABI version.

    Raises:
        RuntimeError: the library is not loaded.
    """
    if _reason is not None:
        raise RuntimeError(_reason)
    return json.loads(torch.ops.dynroute.build_info())
