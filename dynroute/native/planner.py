"""The planner of the CPU kernels, which says how a sepconv is cut into tiles and tasks, and the trace of where a run's
time went: the faces of the extension module `_planner`.

A plan never changes a result, only its speed.  It follows from a cost model with the machine's cache sizes, or from
what was measured (`dynroute.runtime.cpu.tuning_file`).
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

from dynroute.native import library

# A panel of that many pixels at 1024 channels is 4 MiB, beyond any L2's use; it bounds the scratch of a thread.
MAX_TILE_PIXELS = 1024


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


@dataclass(frozen=True)
class Shape:
    """A sepconv's shape: 1 to 3 stages of depthwise 3x3 and pointwise, channels, and the output's rows and columns."""

    stages: int
    c_in: int
    c_out: int
    h_out: int
    w_out: int
    stride: int = 1

    def __str__(self) -> str:
        channels = str(self.c_in) if self.c_in == self.c_out else f"{self.c_in}>{self.c_out}"
        stride = f", stride {self.stride}" if self.stride > 1 else ""
        return f"{self.h_out}x{self.w_out}, {channels} channels, {self.stages} stages{stride}"


def why_not() -> str | None:
    """None if the planner is there, else the reason in one line."""
    reason = library.why_not_loaded()
    if reason is not None:
        return reason
    if _find() is None:
        return "built without Python's headers or pybind11"
    try:
        _load()
    except ImportError as error:
        return f"{_find()} does not load: {' '.join(str(error).split())}"
    return None


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


def may_be_staged(stages: int, scale: int) -> bool:
    """Whether the engine considers one stage at a time for the cells of a scale, in float32.

    Raises:
        RuntimeError: the planner is not there.
        ValueError: a number of stages that no cell has, or no scale.
    """
    return bool(_module().may_be_staged(stages, scale))


def machine() -> dict[str, Any]:
    """What the cost model knows: isa, l1_bytes, l2_bytes, l3_bytes. Raises RuntimeError where there is no planner."""
    return _module().machine()


def tune(
    stages: int,
    c_in: int,
    c_out: int,
    h_out: int,
    w_out: int,
    stride: int = 1,
    *,
    fused: bool | None = None,
    band_rows: int = 0,
    step_rows: int = 0,
    strip: int = 0,
    tile_pixels: int = 0,
) -> None:
    """Fixes (parts of) the plan of a shape for all runs of this process that start from now on.

    Args:
        fused: None leaves it to the model. It counts only where both are possible: with two or three stages, and where
            the caller considers one stage at a time.
        band_rows, step_rows, strip, tile_pixels: as in `Plan`; 0 leaves it to the model. A step still is no larger than
            its band, and no smaller than what one pass over the weights pays for.

    Raises:
        RuntimeError: the planner is not there.
        ValueError: a number out of range: rows and columns beyond the map, or more than MAX_TILE_PIXELS pixels.
    """
    check_tiling(
        h_out, w_out, {"band_rows": band_rows, "step_rows": step_rows, "strip": strip, "tile_pixels": tile_pixels}
    )
    choice = -1 if fused is None else int(fused)
    _module().tune(stages, c_in, c_out, h_out, w_out, stride, choice, band_rows, step_rows, strip, tile_pixels)


def forget_tuned() -> None:
    """All shapes back to the model's plans.

    Raises:
        RuntimeError: the planner is not there.
    """
    _module().forget_tuning()


def check_tiling(h_out: int, w_out: int, tiling: dict[str, int]) -> None:
    """Raises ValueError for a tile that does not fit its map: scratch is taken for what a plan says."""
    largest = {"band_rows": h_out, "step_rows": h_out, "strip": w_out, "tile_pixels": MAX_TILE_PIXELS}
    for name, number in tiling.items():
        if not 0 <= number <= largest[name]:
            raise ValueError(f"{name}: wanted 0 to {largest[name]} for a map of {h_out}x{w_out}, got {number}")


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
        path = library.LIBRARY.parent / f"_planner{suffix}"
        if path.exists():
            return path
    return None


_loaded: ModuleType | None = None


def _load() -> ModuleType:
    """The extension module, which shares its state with the kernels' library. Raises ImportError."""
    global _loaded
    if _loaded is None:
        path = _find()
        spec = importlib.util.spec_from_file_location("_planner", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded = module
    return _loaded


def _module() -> ModuleType:
    """As `_load`. Raises RuntimeError where the planner is not there."""
    reason = why_not()
    if reason is not None:
        raise RuntimeError(f"dynroute.planner: {reason}")
    return _load()
