"""From a configuration to what a run works with: data and device."""

from __future__ import annotations

import torch

from dynroute.data import Augmentation, FolderDataset, Normalise, ScenesDataset, Source
from dynroute.data.sets.folder import known_classes
from dynroute.data.sets.shards import open_dataset
from dynroute.train.config import DataConfig
from dynroute.train.parse import ConfigError


def open_source(config: DataConfig, part: str) -> Source:
    """The training (`part="train"`) or validation (`"val"`) images. Raises DataError."""
    if config.kind == "scenes":
        if part == "train":
            return ScenesDataset(config.scenes_train, config.scenes_size, seed=0)
        return ScenesDataset(config.scenes_val, config.scenes_size, seed=1)
    assert config.root is not None
    if part == "train":
        found = _labelled(config, config.train_split, None, config.cache)
    else:
        # Where nothing else does, the training split says how many classes there are; that of validation need not show
        # them all.
        classes = known_classes(config.root, config.val_split, config.labels, config.ignore)
        if classes is None:
            classes = len(_labelled(config, config.train_split, None, False).class_names)
        found = _labelled(config, config.val_split, classes, config.cache)
    if not found.labelled:
        raise ConfigError(f"data.{part}_split: wanted a split with labels, got {found.split} of {found.root}")
    return found


def _labelled(config: DataConfig, split: str, classes: int | None, cache: bool | None) -> FolderDataset:
    assert config.root is not None
    window, kind = config.shard_window, config.kind
    return open_dataset(
        config.root, split, classes, cache, config.labels, config.ignore, window, kind, config.channels, config.range
    )


def normalisation(config: DataConfig) -> Normalise:
    """How images become the network's input."""
    return Normalise.of(config.channels, config.mean, config.std, config.order, config.range)


def augmentation(config: DataConfig) -> Augmentation:
    """What training does to images."""
    return Augmentation(
        crop=config.crop,
        scale=config.scale,
        short_sides=config.short_sides,
        flip=config.flip,
        jitter=config.jitter,
        normalise=normalisation(config),
    )


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"run.device: wanted auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda wanted, but torch sees no GPU here")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"run.device: wanted one of {torch.cuda.device_count()} GPUs from cuda:0 on, got {name!r}")
    return device
