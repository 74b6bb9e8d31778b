"""What commands share: arguments, devices, progress, tables, JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from dynroute.files import finite
from dynroute.measure.alarms import Alarm
from dynroute.ops.backends import USERS
from dynroute.provenance import provenance
from dynroute.runtime.backends import home

T = TypeVar("T")
BACKENDS = ("auto", *USERS)
_SHOWN = 10


def add_storage(parser: argparse.ArgumentParser) -> None:
    """--storage, as `dynroute.optimize` knows it."""
    parser.add_argument(
        "--storage",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of maps and pointwise weights: bfloat16 (cpu, cuda, triton) and float16 (cuda, triton) take half the "
        "memory (default: float32)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, for `open_device`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cpu; cuda with --backend cuda or triton)")


def parse_size(text: str) -> tuple[int, int]:
    """`HxW` -> (height, width); for argparse."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"wanted HEIGHTxWIDTH in pixels, such as 1024x2048, got {text!r}")
    return int(parts[0]), int(parts[1])


def positive(text: str) -> int:
    """A whole number from 1 on; for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number from 1 on, got {text!r}")
    return int(text)


def open_device(name: str | None, backend: str = "auto") -> torch.device:
    """Where to compute.

    Raises:
        ValueError: no such device, or none that runs here, or `backend` runs elsewhere.
    """
    if name is None:
        name = home(backend)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: wanted cpu, cuda or cuda:N")
    if device.type == "cpu":
        if home(backend) == "cuda":
            raise ValueError(f"--device cpu: the {backend} backend computes on a GPU")
        return device
    if backend in ("cpu", "reference", "triton") and home(backend) == "cpu":
        raise ValueError(f"--device {name}: the {backend} backend computes on the CPU")
    if not torch.cuda.is_available():
        why = "torch sees no GPU here" if torch.version.cuda else f"this torch ({torch.__version__}) has no CUDA"
        raise ValueError(f"--device {name}: {why}")
    if device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """A bar with ETA on stderr, which shows up only when the work takes over two seconds."""
    yield from tqdm(items, desc=label, total=total, delay=2, leave=False, dynamic_ncols=True)


def print_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns on stdout: the first to the left, the others to the right."""
    lines = [list(map(str, head)), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for number, line in enumerate(lines):
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))


def print_alarms(alarms: Iterable[Alarm]) -> None:
    """A paragraph each on stdout."""
    for alarm in alarms:
        print(f"\n{alarm.severity} alarm: {alarm}")


def print_lines(head: str, lines: Sequence[str]) -> None:
    """A list under its head on stdout, its first lines where it is long; nothing where there is none."""
    if not lines:
        return
    print(f"{head}: {len(lines)}")
    for line in lines[:_SHOWN]:
        print(f"  {line}")
    if len(lines) > _SHOWN:
        print(f"  ... and {len(lines) - _SHOWN} more; --json has them all")


def one_line(error: BaseException) -> str:
    """An error's message on one line; of one that a data-loading process passed on, what it was there."""
    message = str(error).strip()
    if "Original Traceback" in message:
        message = message.splitlines()[-1].partition(": ")[2]
    return " ".join(message.split()) or type(error).__name__


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes `result` and where it came from; NaN and infinity become null, which JSON has."""
    seed = result.get("seed")
    whole = {**result, **{k: v for k, v in provenance(seed).items() if k not in result}}
    path.write_text(json.dumps(finite(whole), allow_nan=False, indent=1) + "\n", encoding="utf-8")
