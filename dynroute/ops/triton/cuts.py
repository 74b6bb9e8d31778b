"""How a kernel's work is cut, and the JSON files that cuts lie in: the checked-in table and what a user tuned."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dynroute.files import write_whole
from dynroute.ops.triton.launch import DTYPES, interpreted

FORMAT = "dynroute triton cuts 1"
NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}


class Cut(NamedTuple):
    """A program's pixels, output channels and step through the input's; its warps, and loads on their way."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3

    def tile(self) -> dict[str, Any]:
        """What a kernel over pixels and channels is launched with."""
        return {
            "BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }  # fmt: skip

    def product(self) -> dict[str, Any]:
        """What a product is launched with."""
        return {**self.tile(), "BLOCK_K": self.block_k, "WIDE": interpreted()}


class Key(NamedTuple):
    """What a cut is for: an operator, or a family of kernels, on maps of so many channels; sm_<arch>."""

    op: str
    channels: int
    dtype: torch.dtype
    arch: int


@dataclass(frozen=True)
class Entry:
    """A line of a file.

    Attributes:
        key: what it is for.
        cut: what is launched.
        measured: how a GPU found it (`dynroute.measure.triton_tuning`); None where no GPU has: it is a guess.
    """

    key: Key
    cut: Cut
    measured: dict[str, Any] | None = None


def read_cuts(path: Path) -> list[Entry]:
    """The entries of a file of cuts; none where there is no such file.

    Raises:
        ValueError: not a file of cuts, or one with an entry that makes no sense; the message names file and fault.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"{path}: not a file of Triton's cuts: not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path}: not a file of Triton's cuts: wanted an object with format {FORMAT!r}")
    entries = document.get("entries")
    if not isinstance(entries, list):
        raise ValueError(f"{path}: entries: wanted a list")
    found: dict[Key, Entry] = {}
    for i, value in enumerate(entries):
        try:
            entry = _entry(value)
            if entry.key in found:
                raise ValueError("stands there twice")
        except (KeyError, TypeError, ValueError) as error:
            fault = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: entries[{i}]: {fault}") from error
        found[entry.key] = entry
    return list(found.values())


def write_cuts(path: Path, entries: Iterable[Entry], **about: Any) -> None:
    """Writes a file of cuts, an entry to a line; the file is whole at any time.

    Args:
        about: what else is said of all entries.

    Raises:
        OSError: it cannot be written.
    """
    head = json.dumps({"format": FORMAT, **about}, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(_value(entry), allow_nan=False) for entry in entries)
    write_whole(path, f'{head[:-1]}, "entries": [\n{lines}\n]}}\n')


def save_cuts(path: Path, entries: Iterable[Entry], measured: Iterable[Key]) -> None:
    """Merges measurements into a file of cuts.

    Args:
        entries: what replaces the checked-in cuts.
        measured: all that was measured; what the file held on it goes.

    Raises:
        ValueError: `path` is there and is no file of cuts; it stays as it is.
        OSError: it cannot be written.
    """
    new = list(entries)
    gone = {*measured, *(entry.key for entry in new)}
    write_cuts(path, [*(entry for entry in read_cuts(path) if entry.key not in gone), *new])


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _value(entry: Entry) -> dict[str, Any]:
    key = {**entry.key._asdict(), "dtype": dtype_name(entry.key.dtype)}
    return {**key, "cut": entry.cut._asdict(), "measured": entry.measured}


def _entry(value: Any) -> Entry:
    """An entry from its JSON. Raises KeyError, TypeError or ValueError where something is missing or wrong."""
    if not isinstance(value, dict):
        raise TypeError("wanted an object")

    def whole(of: dict[str, Any], name: str, smallest: int, largest: int) -> int:
        number = of[name]
        if type(number) is not int or not smallest <= number <= largest:
            raise ValueError(f"{name}: wanted a whole number from {smallest} to {largest}, got {number!r}")
        return number

    def power(of: dict[str, Any], name: str, smallest: int, largest: int) -> int:
        number = whole(of, name, smallest, largest)
        if number & (number - 1):
            raise ValueError(f"{name}: wanted a power of two, got {number}")
        return number

    if not isinstance(value["op"], str):
        raise ValueError(f"op: wanted an operator's name, got {value['op']!r}")
    if value["dtype"] not in NAMES:
        raise ValueError(f"dtype: wanted one of {', '.join(NAMES)}, got {value['dtype']!r}")
    cut, measured = value["cut"], value.get("measured")
    if not isinstance(cut, dict) or not isinstance(measured, dict | None):
        raise TypeError("cut, measured: wanted objects")
    key = Key(
        value["op"], whole(value, "channels", 1, 1 << 24), NAMES[value["dtype"]], whole(value, "arch", 1, 1 << 16)
    )
    m, n, k = (power(cut, name, 16, 1024) for name in ("block_m", "block_n", "block_k"))
    return Entry(key, Cut(m, n, k, power(cut, "num_warps", 1, 32), whole(cut, "num_stages", 1, 16)), measured)
