"""What commands share: networks by name, folder or file, data sets, sizes, images, progress, tables, JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from dynroute.data import FolderDataset, Normalise, ScenesDataset, Source
from dynroute.data.preprocess import load_preprocess
from dynroute.models import DynamicNetwork, create_model, from_pretrained, list_models, load_official
from dynroute.provenance import provenance

T = TypeVar("T")
BACKENDS = ("auto", "cpu", "cuda", "reference")


@dataclass
class Target:
    """A network that a command was pointed at.

    Attributes:
        label: as the user named it.
        net: in evaluation mode.
        normalise: from an image to the network's input.
        class_names: None where nothing says what the classes are called.
        trained: False for a named model with random weights.
        run: the training run's folder, if it is one or lies in one.
    """

    label: str
    net: DynamicNetwork
    normalise: Normalise
    class_names: list[str] | None
    trained: bool
    run: Path | None = None

    @property
    def classes(self) -> list[str]:
        """Class names, made up where there are none."""
        return self.class_names or [f"class_{k}" for k in range(self.net.config.num_classes)]


def load_target(text: str, small_gate: bool = False, num_classes: int | None = None) -> Target:
    """A run folder, a folder of `save_pretrained`, a published checkpoint, or a model's name (random weights, seed 0).

    Raises:
        ValueError: none of these; the message says what was looked for.
    """
    path = Path(text)
    if path.is_dir():
        run = path if (path / "config.yaml").is_file() else None
        folder = path / "model" if (path / "model").is_dir() else path
        if run is not None and folder is path:
            raise ValueError(f"{path}: a run without a model/ yet: its training has not finished (train --resume)")
        if run is None and folder is path and (path.parent / "config.yaml").is_file():
            run = path.parent
        if not (folder / "config.json").is_file():
            raise ValueError(f"{path}: wanted a run folder (config.yaml, model/) or a model folder (config.json)")
        net = from_pretrained(folder)
        normalise, names = load_preprocess(folder)
        if names is not None and len(names) != net.config.num_classes:
            raise ValueError(
                f"{folder / 'preprocess.json'}: {len(names)} class names, but the network has {net.config.num_classes}"
            )
        return Target(text, net, normalise, names, True, run)
    if path.is_file():
        return Target(text, load_official(path, small_gate=small_gate), Normalise(), None, True)
    if text in list_models():
        torch.manual_seed(0)
        return Target(text, create_model(text, num_classes=num_classes).eval(), Normalise(), None, False)
    raise ValueError(
        f"{text}: no such folder or file, nor a model's name; wanted a run folder, a model folder, a published "
        f"checkpoint, or one of {', '.join(list_models())}"
    )


def add_target(parser: argparse.ArgumentParser, name: str = "model", optional: bool = False) -> None:
    """The positional argument that `load_target` reads (None where it is optional and left out), and --small-gate."""
    parser.add_argument(
        name,
        metavar=name.upper(),
        nargs="?" if optional else None,
        help="run folder, model folder, published checkpoint file, or a model's name",
    )
    parser.add_argument(
        "--small-gate",
        action="store_true",
        help="the gates of a published checkpoint read a quarter-size input (the file does not say)",
    )


def add_storage(parser: argparse.ArgumentParser) -> None:
    """--storage, as `dynroute.optimize` knows it."""
    parser.add_argument(
        "--storage",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="of maps and pointwise weights: bfloat16 (cpu and cuda backend) and float16 (cuda) take half the memory "
        "(default: float32)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, for `open_device`."""
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cpu; cuda with --backend cuda)")


def open_data(target: Target, data: str | None, split: str) -> Source:
    """The data set `data` (a folder, or `scenes`), or the one that the target's run was validated on.

    Raises:
        ValueError: nothing to open, or its classes are not the network's.
    """
    from dynroute.train.config import load_config
    from dynroute.train.loop import open_source

    classes = target.net.config.num_classes
    if data == "scenes":
        source: Source = ScenesDataset(64, seed=1)
    elif data is not None:
        source = FolderDataset(data, split, classes)
    elif target.run is not None:
        source = open_source(load_config(target.run / "config.yaml").data, "val")
    else:
        raise ValueError(f"{target.label}: not a training run, so --data is wanted: a data set's folder, or 'scenes'")
    if len(source.class_names) != classes:
        raise ValueError(f"data: {len(source.class_names)} classes, but the network has {classes}")
    return source


def run_config(target: Target) -> dict[str, Any]:
    """The run's configuration as plain values; empty without a run."""
    if target.run is None:
        return {}
    return yaml.safe_load((target.run / "config.yaml").read_text(encoding="utf-8")) or {}


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
        name = "cuda" if backend == "cuda" else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: wanted cpu, cuda or cuda:N")
    if device.type == "cpu":
        if backend == "cuda":
            raise ValueError("--device cpu: the cuda backend computes on a GPU")
        return device
    if backend in ("cpu", "reference"):
        raise ValueError(f"--device {name}: the {backend} backend computes on the CPU")
    if not torch.cuda.is_available():
        why = "torch sees no GPU here" if torch.version.cuda else f"this torch ({torch.__version__}) has no CUDA"
        raise ValueError(f"--device {name}: {why}")
    if device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    if device.index >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    return device


def input_tensor(normalise: Normalise, images: Sequence[Any]) -> Tensor:
    """Images uint8 [H,W,3] of one size -> float32 [N,3,H,W], channels_last."""
    stacked = torch.stack([torch.from_numpy(normalise(image)) for image in images])
    return stacked.permute(0, 3, 1, 2)


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
    path.write_text(json.dumps(_finite(whole), indent=1) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
