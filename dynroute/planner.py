"""The planner of the CPU kernels: how a sepconv is cut into tiles and tasks, and where a run's time went.

A plan never changes a result, only its speed.  It follows from a cost model with the machine's cache sizes; what
`dynroute bench --tune` measured replaces it, from the file that DYNROUTE_TUNING names or `default_tuning_file()`.  The
first runtime on the CPU kernels reads that file; DYNROUTE_TUNING=off leaves it unread.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dynroute import _native

# A panel of that many pixels at 1024 channels is 4 MiB, beyond any L2's use; it bounds the scratch of a thread.
MAX_TILE_PIXELS = 1024
TUNING_FORMAT = "dynroute tuning 1"


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


@dataclass(frozen=True)
class Entry:
    """What was measured for one shape on one machine: a line of the tuning file.

    Attributes:
        shape: the sepconv's.
        machine: as `machine()`: the instruction set and cache sizes in bytes; the entry holds for no other.
        fused: None leaves it to the model.
        step_rows, strip, tile_pixels: as in `Plan`; 0 leaves it to the model. The bands follow the threads, so they
            always are the model's.
        threads: how many the measurement ran on.
        model_ms, ms: measured milliseconds of the cells of this shape in one pass of the network, added up over
            threads, with the model's plan and with this one; medians.
        version: of dynroute.
    """

    shape: Shape
    machine: dict[str, Any]
    fused: bool | None
    step_rows: int
    strip: int
    tile_pixels: int
    threads: int
    model_ms: float
    ms: float
    version: str


@dataclass(frozen=True)
class Tuning:
    """What became of the tuning file.

    Attributes:
        path: the file; None where DYNROUTE_TUNING=off, or where the planner is not there.
        used: entries in force.
        ignored: entries of other machines.
        reason: why nothing, or not all of it, is used, in one line; None where all is.
    """

    path: Path | None
    used: int = 0
    ignored: int = 0
    reason: str | None = None


def why_not() -> str | None:
    """None if the planner is there, else the reason in one line."""
    reason = _native.why_not_loaded()
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
    _check(h_out, w_out, {"band_rows": band_rows, "step_rows": step_rows, "strip": strip, "tile_pixels": tile_pixels})
    choice = -1 if fused is None else int(fused)
    _module().tune(stages, c_in, c_out, h_out, w_out, stride, choice, band_rows, step_rows, strip, tile_pixels)


def forget_tuning() -> None:
    """All shapes back to the model's plans.  The tuning file is not read again, but by `load_tuning(again=True)`.

    Raises:
        RuntimeError: the planner is not there.
    """
    global _tuning
    with _lock:
        _module().forget_tuning()
        _tuning = Tuning(None, reason="forgotten (planner.forget_tuning)")


def default_tuning_file() -> Path:
    """dynroute/tuning.json in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    # expanduser, unlike Path.home, does not fail where there is no home
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dynroute" / "tuning.json"


def tuning_file() -> Path | None:
    """The file that DYNROUTE_TUNING names, or the default one; None where it says `off`."""
    named = os.environ.get("DYNROUTE_TUNING")
    if named == "off":
        return None
    return Path(named) if named else default_tuning_file()


def read_tuning(path: Path) -> list[Entry]:
    """The entries of a tuning file, of all machines; none where there is no such file.

    Raises:
        ValueError: not a tuning file, or one with an entry that makes no sense; the message names file and fault.
        OSError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a tuning file: {error}") from error
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a tuning file: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != TUNING_FORMAT:
        raise ValueError(f"{path}: not a tuning file: wanted an object with format {TUNING_FORMAT!r}")
    entries = document.get("entries")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: entries: wanted a list")
    found = []
    for i, entry in enumerate(entries):
        try:
            found.append(_entry(entry))
        except (KeyError, TypeError, ValueError) as error:
            fault = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: entries[{i}]: {fault}") from error
    return found


def save_tuning(path: Path, entries: Sequence[Entry], measured: Sequence[Shape]) -> None:
    """Merges measurements of this machine into a tuning file; the file is whole at any time.

    Args:
        entries: what replaces the model's plans.
        measured: all shapes that were measured; what the file held on them for this machine goes.

    Raises:
        RuntimeError: the planner is not there.
        ValueError: `path` is there and is no tuning file; it stays as it is.
        OSError: it cannot be written.
    """
    here, gone = machine(), {*measured, *(entry.shape for entry in entries)}
    kept = [entry for entry in read_tuning(path) if entry.machine != here or entry.shape not in gone]
    document = {"format": TUNING_FORMAT, "entries": [asdict(entry) for entry in [*kept, *entries]]}
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: two that save at once must not write into one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def load_tuning(again: bool = False) -> Tuning:
    """Puts the tuning file's entries for this machine in force, the first time that it is called.

    A file that cannot be used is one warning of the logger `dynroute`, and leaves the model's plans.

    Args:
        again: forget all tuning, and read the file another time.
    """
    global _tuning
    with _lock:
        if _tuning is None or again:
            _tuning = _read_into_planner()
        return _tuning


def _read_into_planner() -> Tuning:
    reason = why_not()
    if reason is not None:
        return Tuning(None, reason=f"no planner: {reason}")
    _module().forget_tuning()
    path = tuning_file()
    if path is None:
        return Tuning(None, reason="DYNROUTE_TUNING=off")
    try:
        entries = read_tuning(path)
        if not path.exists():
            return Tuning(path, reason="no such file; `dynroute bench --tune` writes it")
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        logging.getLogger("dynroute").warning("dynroute: tuning is left out, plans are the model's: %s", message)
        return Tuning(path, reason=message)
    here = machine()
    used, others = set(), []
    for entry in entries:
        if entry.machine != here:
            others.append(entry)
            continue
        tune(
            *asdict(entry.shape).values(),
            fused=entry.fused,
            step_rows=entry.step_rows,
            strip=entry.strip,
            tile_pixels=entry.tile_pixels,
        )
        used.add(entry.shape)
    return Tuning(path, len(used), len(others), _why_ignored(others, here))


def _why_ignored(others: Sequence[Entry], here: dict[str, Any]) -> str | None:
    """One line on the entries of other machines."""
    if not others:
        return None
    isas = sorted({str(entry.machine["isa"]) for entry in others if entry.machine["isa"] != here["isa"]})
    reasons = [f"for {', '.join(isas)}, not {here['isa']}"] if isas else []
    if any(entry.machine["isa"] == here["isa"] for entry in others):
        reasons.append("for other cache sizes")
    return f"{len(others)} ignored: {'; '.join(reasons)}"


def _entry(value: Any) -> Entry:
    """An entry from its JSON. Raises KeyError, TypeError or ValueError where something is missing or wrong."""
    if not isinstance(value, dict):
        raise TypeError("wanted an object")

    def whole(of: dict[str, Any], name: str, least: int, most: int = 1 << 24) -> int:
        number = of[name]
        if type(number) is not int or not least <= number <= most:
            raise ValueError(f"{name}: wanted a whole number from {least} to {most}, got {number!r}")
        return number

    if not isinstance(value["shape"], dict) or not isinstance(value["machine"], dict):
        raise TypeError("shape, machine: wanted objects")
    limits = {"stages": 3, "stride": 2}
    names = ("stages", "c_in", "c_out", "h_out", "w_out", "stride")
    shape = Shape(**{name: whole(value["shape"], name, 1, limits.get(name, 1 << 24)) for name in names})
    tiling = {name: whole(value, name, 0) for name in ("step_rows", "strip", "tile_pixels")}
    _check(shape.h_out, shape.w_out, tiling)
    if value["fused"] is not None and not isinstance(value["fused"], bool):
        raise ValueError(f"fused: wanted true, false or null, got {value['fused']!r}")
    of_machine = {"isa": str(value["machine"]["isa"])} | {
        name: whole(value["machine"], name, 0, 1 << 50) for name in ("l1_bytes", "l2_bytes", "l3_bytes")
    }
    return Entry(
        shape=shape,
        machine=of_machine,
        fused=value["fused"],
        **tiling,
        threads=whole(value, "threads", 1),
        model_ms=float(value["model_ms"]),
        ms=float(value["ms"]),
        version=str(value["version"]),
    )


def _check(h_out: int, w_out: int, tiling: dict[str, int]) -> None:
    """Raises ValueError for a tile that does not fit its map: scratch is taken for what a plan says."""
    most = {"band_rows": h_out, "step_rows": h_out, "strip": w_out, "tile_pixels": MAX_TILE_PIXELS}
    for name, number in tiling.items():
        if not 0 <= number <= most[name]:
            raise ValueError(f"{name}: wanted 0 to {most[name]} for a map of {h_out}x{w_out}, got {number}")


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
_tuning: Tuning | None = None  # None: the file has not been looked for yet
_lock = threading.Lock()  # of `_tuning`


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
