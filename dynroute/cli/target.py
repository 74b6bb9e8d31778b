"""What commands are pointed at: a network by name, folder or file, and its data set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dynroute.data import FolderDataset, Normalise, ScenesDataset, Source, load_preprocess
from dynroute.data.images import input_tensor
from dynroute.models import DynamicNetwork, create_model, from_pretrained, list_models, load_official
from dynroute.train.config import DataConfig, load_config
from dynroute.train.setup import open_source


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


def open_data(
    target: Target,
    data: str | None,
    split: str,
    labels: str | Mapping[int, int] | None = None,
    ignore: int | None = None,
) -> Source:
    """The data set `data` (a folder, or `scenes`), or the one that the target's run was validated on.

    What values of masks mean (`labels`, `ignore`) is what the run was trained with, where it is not given.

    Raises:
        ValueError: nothing to open, or its classes are not the network's.
    """
    classes = target.net.config.num_classes
    if data in (None, "scenes") and (labels is not None or ignore is not None):
        raise ValueError("--labels, --ignore: wanted with --data ROOT; a run's own data is read as in its training")
    if data == "scenes":
        source: Source = ScenesDataset(64, seed=1)
    elif data is not None:
        own = load_config(target.run / "config.yaml").data if target.run is not None else DataConfig()
        meant = own.labels if labels is None else labels
        source = FolderDataset(data, split, classes, labels=meant, ignore=own.ignore if ignore is None else ignore)
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


def data_images(target: Target, data: str | None, split: str, count: int) -> Tensor:
    """The first `count` images of the first one's size, [M,3,H,W]; repeated where the data set has fewer."""
    source = open_data(target, data, split)
    found: list[Any] = []
    for index in range(len(source)):
        image, _ = source.read(index)
        if not found or image.shape == found[0].shape:
            found.append(image)
        if len(found) == count:
            break
    return input_tensor(target.normalise, [found[i % len(found)] for i in range(count)])
