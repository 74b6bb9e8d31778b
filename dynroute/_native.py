"""Loading of the native library. The package works without it, on the reference backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LIBRARY = Path(__file__).parent / "lib" / "libdynroute_cpu.so"


def _load() -> str | None:
    if not LIBRARY.exists():
        return f"{LIBRARY} is missing: build it with `pip install --no-build-isolation -e .`"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
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
