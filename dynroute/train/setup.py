"""From a configuration to what a run works with: network, data, device."""

from __future__ import annotations

import torch

from dynroute.data import Augmentation, FolderDataset, Normalise, ScenesDataset, Source
from dynroute.models.network import DynamicNetwork
from dynroute.models.pretrained import from_pretrained
from dynroute.models.zoo import create_model
from dynroute.train.config import DataConfig, ModelConfig
from dynroute.train.parse import ConfigError


def make_network(config: ModelConfig, classes: int, bn: str = "all") -> DynamicNetwork:
    """The network that `config` names, for a data set of `classes` classes, in training. Raises ConfigError."""
    try:
        if config.init is not None:
            net = from_pretrained(config.init)
        else:
            net = create_model(
                config.name,
                num_classes=config.num_classes or classes,
                channels=config.channels,
                layers=config.layers,
                small_gate=config.small_gate,
                gate=config.gate,
                stem_width=config.stem_width,
                drop_prob=config.drop_prob,
            )
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    if net.config.num_classes != classes:
        raise ConfigError(f"model: {net.config.num_classes} classes, but the data set has {classes}")
    try:
        net.bn = bn
    except ValueError as error:
        raise ConfigError(f"train.{error}") from error
    return net.train()


def open_source(config: DataConfig, part: str) -> Source:
    """The training (`part="train"`) or validation (`"val"`) images. Raises DataError."""
    if config.kind == "scenes":
        if part == "train":
            return ScenesDataset(config.scenes_train, config.scenes_size, seed=0)
        return ScenesDataset(config.scenes_val, config.scenes_size, seed=1)
    assert config.root is not None
    if part == "train":
        return FolderDataset(
            config.root, config.train_split, cache=config.cache, labels=config.labels, ignore=config.ignore
        )
    # The training split says how many classes there are; the validation split need not show them all.
    train = FolderDataset(config.root, config.train_split, cache=False, labels=config.labels, ignore=config.ignore)
    classes = len(train.class_names)
    return FolderDataset(config.root, config.val_split, classes, config.cache, config.labels, config.ignore)


def normalisation(config: DataConfig) -> Normalise:
    """How images become the network's input."""
    return Normalise(config.mean, config.std, config.order)


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
