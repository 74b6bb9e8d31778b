"""The tuning file: tilings that were measured to be faster than the cost model's, kept for a machine.

`dynroute bench --tune` writes it: the file that DYNROUTE_TUNING names, or `default_tuning_file()`.  The first runtime
on the CPU kernels reads it; DYNROUTE_TUNING=off leaves it unread.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynroute.files import cache_file, write_whole
from dynroute.native.planner import Shape, check_tiling, forget_tuned, machine, tune, why_not

TUNING_FORMAT = "dynroute tuning 1"


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


_tuning: Tuning | None = None  # None: the file has not been looked for yet
_lock = threading.Lock()  # of `_tuning`


def forget_tuning() -> None:
    """All shapes back to the model's plans.  The tuning file is not read again, but by `load_tuning(again=True)`.

    Raises:
        RuntimeError: the planner is not there.
    """
    global _tuning
    with _lock:
        forget_tuned()
        _tuning = Tuning(None, reason="forgotten (planner.forget_tuning)")


def default_tuning_file() -> Path:
    """dynroute/tuning.json in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    return cache_file("tuning.json")


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
    write_whole(path, json.dumps(document, indent=1) + "\n")


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
    forget_tuned()
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

    def whole(of: dict[str, Any], name: str, smallest: int, largest: int = 1 << 24) -> int:
        number = of[name]
        if type(number) is not int or not smallest <= number <= largest:
            raise ValueError(f"{name}: wanted a whole number from {smallest} to {largest}, got {number!r}")
        return number

    if not isinstance(value["shape"], dict) or not isinstance(value["machine"], dict):
        raise TypeError("shape, machine: wanted objects")
    limits = {"stages": 3, "stride": 2}
    names = ("stages", "c_in", "c_out", "h_out", "w_out", "stride")
    shape = Shape(**{name: whole(value["shape"], name, 1, limits.get(name, 1 << 24)) for name in names})
    tiling = {name: whole(value, name, 0) for name in ("step_rows", "strip", "tile_pixels")}
    check_tiling(shape.h_out, shape.w_out, tiling)
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
