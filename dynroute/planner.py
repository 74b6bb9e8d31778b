"""The planner of the CPU kernels: how a sepconv is cut into tiles and tasks, and where a run's time went.

A plan never changes a result, only its speed.  It follows from a cost model with the machine's cache sizes; what
`dynroute bench --tune` measured replaces it, from the file that DYNROUTE_TUNING names or `default_tuning_file()`.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dynroute import _native


@dataclass(frozen=True)
class Plan:
    """How a sepconv runs.

    Attributes:
        fused: all stages in one pass over the map; else one at a time, with whole maps between.
        band_rows: output rows of a task.
        step_rows: of those, made at a time, so that they and what they read stay in L2.
        strip: columns walked down together, so that the rows above are found in L1.
        tile_pixels: most pixels whose depthwise outputs are gathered for one pointwise product.
        milliseconds: the cost model's estimate (estimated, not measured).
    """

    fused: bool
    band_rows: int
    step_rows: int
    strip: int
    tile_pixels: int
    milliseconds: float


@dataclass(frozen=True)
class Traced:
    """Time spent in one kind of work at one scale, added up over threads."""

    work: str
    scale: int
    milliseconds: float
    tasks: int


def why_not() -> str | None:
    """None if the planner is there, else the reason in one line."""
    return _native.why_not_loaded() or (None if _find() else "built without Python's headers or pybind11")


def plan(
    stages: int,
    c_in: int,
    c_out: int,
    h_out: int,
    w_out: int,
    stride: int = 1,
    staged: bool = True,
    samples: int = 1,
    threads: int = 1,
) -> Plan:
    """The plan for `samples` open samples on `threads` threads; `staged`: whether one stage at a time is considered.

    Raises:
        RuntimeError: the planner is not there.
        ValueError: a number out of range.
    """
    return Plan(**_module().plan(stages, c_in, c_out, h_out, w_out, stride, staged, samples, threads))


def machine() -> dict[str, Any]:
    """What the cost model knows: isa, l1_bytes, l2_bytes, l3_bytes. RuntimeError where it is not there."""
    return _module().machine()


@contextmanager
def tracing() -> Iterator[list[Traced]]:
    """Traces all native runs of the process inside the block; the list is filled when it ends."""
    module, found = _module(), list[Traced]()
    module.set_tracing(True)
    try:
        yield found
    finally:
        module.set_tracing(False)
        found += [Traced(*entry) for entry in module.trace()]


def _find() -> Path | None:
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    for suffix in suffixes:
        path = _native.LIBRARY.parent / f"_planner{suffix}"
        if path.exists():
            return path
    return None


_loaded: ModuleType | None = None


def _module() -> ModuleType:
    """The extension module, which shares its state with the kernels' library."""
    global _loaded
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"dynroute.planner: {reason}")
    if _loaded is None:
        spec = importlib.util.spec_from_file_location("_planner", _find())
        assert spec is not None and spec.loader is not None
        _loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_loaded)
    return _loaded
