"""What commands are pointed at: a network by name, folder or file, and its data set."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dynroute.data import Normalise, ScenesDataset, Source, understood
from dynroute.data.images import input_tensor
from dynroute.data.sets.shards import open_dataset
from dynroute.models import DynamicNetwork, create_model, from_pretrained, list_models
from dynroute.train.config import DataConfig, load_config
from dynroute.train.setup import open_source


@dataclass
class Target:
    """A network that a command was pointed at.

    Attributes:
        label: as the user named it.
        net: in evaluation mode.
        trained: False for a named model with random weights.
        run: the training run's folder, if it is one or lies in one.
    """

    label: str
    net: DynamicNetwork
    trained: bool
    run: Path | None = None

    @property
    def normalise(self) -> Normalise:
        """From an image to the network's input. Raises DataError where nothing says it."""
        if not self.trained:
            return Normalise.of(self.net.config.in_channels)
        return understood(self.net.preprocess, self.label)[0]

    @property
    def class_names(self) -> list[str] | None:
        """None where nothing says what the classes are called."""
        return understood(self.net.preprocess, self.label)[1] if self.net.preprocess is not None else None

    @property
    def classes(self) -> list[str]:
        """Class names, made up where there are none."""
        return self.class_names or [f"class_{k}" for k in range(self.net.config.num_classes)]


def load_target(text: str, small_gate: bool = False, num_classes: int | None = None) -> Target:
    """A run folder, a folder of `save_pretrained`, a file of weights (see `dynroute.models.weights.read_weights`), or a
    model's name (random weights, seed 0).

    Raises:
        ValueError: none of these; the message says what was looked for.
    """
    path = Path(text).expanduser()
    if path.exists():
        net = from_pretrained(path, **({"small_gate": True} if small_gate else {}))
        target = Target(text, net, True, _run_of(path))
        if net.preprocess is not None:
            _check_preprocess(target)
        return target
    if text in list_models():
        torch.manual_seed(0)
        return Target(text, create_model(text, num_classes=num_classes).eval(), False)
    raise ValueError(
        f"{text}: no such folder or file, nor a model's name; wanted a run folder, a model folder, a file of weights, "
        f"or one of {', '.join(list_models())}"
    )


def _run_of(path: Path) -> Path | None:
    """The run's folder, if this is one, or its model's folder or a file in there, or one of its checkpoints."""
    inside = [path, path.parent] if path.is_dir() else [path.parent.parent]
    return next((folder for folder in inside if (folder / "config.yaml").is_file()), None)


def _check_preprocess(target: Target) -> None:
    """Raises ValueError where what the network's folder says of its data is not of this network."""
    config, names = target.net.config, target.class_names
    if names is not None and len(names) != config.num_classes:
        raise ValueError(
            f"{target.label}: preprocess.json: {len(names)} class names, but the network has {config.num_classes}"
        )
    if target.normalise.channels != config.in_channels:
        raise ValueError(
            f"{target.label}: preprocess.json: mean of {target.normalise.channels} channels, but the network takes "
            f"{config.in_channels}"
        )


def add_target(parser: argparse.ArgumentParser, name: str = "model", optional: bool = False) -> None:
    """The positional argument that `load_target` reads (None where it is optional and left out), and --small-gate."""
    parser.add_argument(
        name,
        metavar=name.upper(),
        nargs="?" if optional else None,
        help="run folder, model folder, file of weights (a run's or a published checkpoint, a state dict), or a "
        "model's name",
    )
    parser.add_argument(
        "--small-gate",
        action="store_true",
        help="the gates of weights without a configuration read a quarter-size input (published files do not say)",
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
        ValueError: nothing to open, its classes are not the network's, or nothing says how images become its input.
    """
    normalise = target.normalise  # before anything is read
    classes = target.net.config.num_classes
    if data in (None, "scenes") and (labels is not None or ignore is not None):
        raise ValueError("--labels, --ignore: wanted with --data ROOT; a run's own data is read as in its training")
    if data == "scenes" and normalise.channels != 3:
        raise ValueError(f"--data scenes: images of 3 channels, but the network takes {normalise.channels}")
    if data == "scenes":
        source: Source = ScenesDataset(64, seed=1)
    elif data is not None:
        own = load_config(target.run / "config.yaml").data if target.run is not None else DataConfig()
        meant = own.labels if labels is None else labels
        ignored = own.ignore if ignore is None else ignore
        source = open_dataset(
            data, split, classes, cache=False, labels=meant, ignore=ignored,
            channels=normalise.channels, value_range=normalise.range,
        )  # fmt: skip
    elif target.run is not None:
        # each image is read about once: nothing to keep in memory
        source = open_source(replace(load_config(target.run / "config.yaml").data, cache=False), "val")
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
    """The first `count` images of the first one's size, [M,I,H,W]; repeated where the data set has fewer."""
    source = open_data(target, data, split)
    found: list[Any] = []
    for index in range(len(source)):
        image, _ = source.read(index)
        if not found or image.shape == found[0].shape:
            found.append(image)
        if len(found) == count:
            break
    return input_tensor(target.normalise, [found[i % len(found)] for i in range(count)])
