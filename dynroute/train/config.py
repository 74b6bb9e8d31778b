"""The configuration of a training run: one tree of dataclasses, from a YAML file and `key.sub=value` overrides."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dynroute.cost.budget import Budget
from dynroute.data import Normalise
from dynroute.files import write_whole
from dynroute.train.parse import ConfigError, build, set_override

SHIPPED = Path(__file__).parent / "configs"
MOST_THREADS = 1024
MOST_SEED = 2**62  # other streams' seeds are a little above a run's


@dataclass
class ModelConfig:
    """Which network; None leaves a field as the named network has it (see `dynroute.create_model`)."""

    name: str = "dynamic_raw_l16"
    num_classes: int | None = None
    """None: as many as the data set has."""
    channels: int | None = None
    layers: int | None = None
    small_gate: bool | None = None
    gate: str | None = None
    stem_width: int | None = None
    drop_prob: float | None = None
    in_channels: int | None = None
    """None: as many as the images have (`data.channels`)."""
    init: str | None = None
    """Weights to start from: a run's folder, one of `save_pretrained`, a checkpoint, or a file (see
    `dynroute.models.weights.read_weights`). What fits is taken; fields above that are None are then as the weights
    have them, or as the named network does where these do not say."""

    def __post_init__(self) -> None:
        self.init = None if self.init is None else os.path.expanduser(self.init)


@dataclass
class DataConfig:
    """Which images, and how training changes them."""

    kind: Literal["folder", "shards", "scenes"] = "folder"
    """A folder's layout is recognised, that of shards too; shards insists on it."""
    root: str | None = None
    """The data set's folder; of shards also a pattern, such as /data/{train,val}-{000000..000127}.tar."""
    train_split: str = "train"
    val_split: str = "val"
    labels: (
        Literal["binary", "cityscapes", "cityscapes_train_ids", "voc2012", "reduce_zero_label"] | dict[int, int] | None
    ) = None
    """What the values of masks mean: a map such as {255: 1}, or a scheme (`dynroute.data.labels.Labels`); None: they
    are classes."""
    ignore: int = 255
    """The value in masks that no loss and no metric looks at, where `labels` does not say otherwise."""
    cache: bool | None = None
    """Keep decoded images in memory; None: when the split is small."""
    crop: tuple[int, int] = (768, 768)
    scale: tuple[float, float] = (0.5, 2.0)
    short_sides: tuple[int, ...] = ()
    """Scale the shortest side to one of these instead of by `scale`."""
    flip: bool = True
    jitter: float = 0.0
    channels: int = 3
    """Of the images: 3 is RGB; others are the file's own (`dynroute.data.images.read_image`)."""
    mean: tuple[float, ...] | None = None
    """A number for each channel; None: the published recipe's for 3, 127.5 each for others."""
    std: tuple[float, ...] | None = None
    """As `mean`; None: 1 each for 3 channels, 57 each for others."""
    order: Literal["bgr", "rgb"] = "bgr"
    """Of 3 channels; others stay as they come."""
    range: tuple[float, float] | None = None
    """The stored values that pictures have 0 and 255 for, such as [0, 4095]; None: by their type
    (`dynroute.data.images.eight_bits`)."""
    workers: int = 1
    shard_window: int = 8
    """Shards whose samples are mixed with each other in an epoch (`ShardDataset`)."""
    scenes_size: int = 160
    scenes_train: int = 4096
    scenes_val: int = 128

    def __post_init__(self) -> None:
        self.root = None if self.root is None else os.path.expanduser(self.root)
        if self.channels >= 1:
            default = Normalise.of(self.channels)
            self.mean, self.std = self.mean or default.mean, self.std or default.std


@dataclass
class OptimiserConfig:
    """SGD as SPEC "Training" has it."""

    batch: int = 8
    """Images a step, of all processes together."""
    accumulate: int = 1
    """Parts that a process's share of a batch goes through the network in, one after the other: less memory; BatchNorm
    and the budget see a part at a time."""
    lr: float = 0.05
    gate_lr_factor: float = 1.0
    """2.5 with a pretrained backbone."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    """Of everything but normalisation parameters."""
    clip_norm: float = 5.0


@dataclass
class ScheduleConfig:
    """Learning rate over time: linear warm-up times polynomial decay."""

    steps: int = 190_000
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    power: float = 0.9


@dataclass
class TrainConfig:
    """What of the network a step computes."""

    bn: Literal["all", "open", "frozen"] = "all"
    """Which samples BatchNorm sees, see `DynamicNetwork.bn`: all; open ones only, so that closed ones cost nothing;
    frozen keeps the statistics that `model.init` brings, and leaves closed ones out too."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are, BatchNorm's statistics too: stem, init, grid, gates, decoder, or what names of
    parameters begin with, such as grid.3 or decoder.predictor."""
    class_weights: Literal["balanced", "enet"] | tuple[float, ...] | None = None
    """Factors of the classes in the segmentation loss: a list, or by how often the training split shows them, see
    `dynroute.train.class_weights`."""
    sync_bn: bool = True
    """Of several processes: BatchNorm sees the samples of all, so that a step is that of one process."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is what is evaluated and saved then, such as 0.999; 0: none."""


@dataclass
class EvaluationConfig:
    """What happens after training, and now and then during it."""

    every: int = 0
    """Steps between evaluations during training; 0: only at the end."""
    precise_bn_batches: int = 200
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    max_images: int | None = None


@dataclass
class RunConfig:
    """Where the run goes and how it is carried out."""

    folder: str = "runs/run"
    resume: Literal["never", "auto", "always"] = "never"
    """Go on from the folder's newest whole checkpoint: auto where there is one; never refuses a folder that holds a
    run, but for torchrun's own that it starts again. `dynroute train --resume` is always."""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    """None: as many as torch takes."""
    ops: str = "auto"
    """What trains: auto (fused operators where there are kernels), reference (plain PyTorch), or a backend's name."""
    amp: Literal["off", "bfloat16", "float16"] = "off"
    """Type that autocast lowers to; float16, on a GPU, with a scale of the loss that follows its gradients."""
    deterministic: bool = False
    """Deterministic algorithms alone: the same bits in each run on the same machine (`surroundings.deterministic`)."""
    compile: bool = False
    graph: bool | None = None
    """Record a step as a CUDA graph and replay it: the same numbers, without the host's part. None: on a GPU, unless
    several processes train or `compile` is on."""
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    """The last so many stay."""
    max_skipped: int = 25
    """Steps whose loss or gradient is not finite are skipped; so many in a row end the run."""

    def __post_init__(self) -> None:
        self.folder = os.path.expanduser(self.folder)


@dataclass
class Config:
    """Everything that defines a run; written resolved to `<run folder>/config.yaml`."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    budget: Budget = field(default_factory=Budget)
    """Without a weight: none."""
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, lists and scalars."""
        return _plain(asdict(self))

    def save(self, path: str | Path) -> None:
        """Write as YAML; `load_config` reads it back to an equal configuration."""
        write_whole(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False))


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration.

    Args:
        path: a YAML file, the name of a shipped one (`camvid`, see `list_configs`), or None for the defaults.
        overrides: `key.sub=value` each, the value written as in YAML; applied in order, after the file.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one), a value of the wrong type, or
            values that do not make sense together.
    """
    tree = {} if path is None else _read(path)
    for override in overrides:
        set_override(tree, override)
    if isinstance(tree.get("run"), dict) and "bf16" in tree["run"]:
        raise ConfigError("run.bf16: it is run.amp now: write amp: bfloat16 for true, and leave it out for false")
    config = build(Config, tree)
    check_config(config)
    return config


def list_configs() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _read(path: str | Path) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file() and str(path) in list_configs():
        file = SHIPPED / f"{path}.yaml"
    if not file.is_file():
        raise ConfigError(f"{path}: no such file, wanted a YAML file or one of {', '.join(list_configs())}")
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: wanted keys such as 'model:' at the top, got {type(tree).__name__}")
    return tree


def check_config(config: Config) -> None:
    """Raises ConfigError for the first value out of range: its name, what was wanted, what was got."""
    for path, value in _numbers(config.to_dict()):
        if not math.isfinite(value):
            raise ConfigError(f"{path}: wanted a finite number, got {value}")
    data, optimiser, schedule, evaluation, run = (
        config.data, config.optimiser, config.schedule, config.evaluation, config.run
    )  # fmt: skip
    factors = config.train.class_weights
    checks = [
        (data.kind == "scenes" or data.root is not None, "data.root: wanted the folder of the data set"),
        (
            not isinstance(data.labels, dict) or all(0 <= label <= 255 for label in data.labels.values()),
            f"data.labels: wanted classes 0..254, or 255 for what is ignored, got {data.labels}",
        ),
        (-1 <= data.ignore <= 65535, f"data.ignore: wanted a value of masks, -1..65535, got {data.ignore}"),
        (min(data.crop) >= 1, f"data.crop: wanted positive sizes, got {list(data.crop)}"),
        (0 < data.scale[0] <= data.scale[1], f"data.scale: wanted 0 < low <= high, got {list(data.scale)}"),
        _from(1, "data.channels", data.channels),
        (
            data.kind != "scenes" or data.channels == 3,
            f"data.channels: wanted 3, which scenes have, got {data.channels}",
        ),
        *(
            (len(of or ()) == data.channels, f"data.{name}: wanted {data.channels} numbers (data.channels), got {of}")
            for name, of in (("mean", data.mean), ("std", data.std))
        ),
        (min(data.std or (1.0,)) > 0, f"data.std: wanted positive numbers, got {data.std}"),
        (
            config.model.in_channels in (None, data.channels),
            f"model.in_channels: wanted {data.channels} (data.channels), got {config.model.in_channels}",
        ),
        (0 <= data.jitter < 1, f"data.jitter: wanted 0 <= jitter < 1, got {data.jitter}"),
        (
            data.range is None or data.range[0] < data.range[1],
            f"data.range: wanted low < high, got {data.range and list(data.range)}",
        ),
        (data.workers >= 0, f"data.workers: wanted 0 or more, got {data.workers}"),
        _from(1, "data.shard_window", data.shard_window),
        (data.scenes_size >= 32, f"data.scenes_size: wanted 32 or more, got {data.scenes_size}"),
        (min(data.scenes_train, data.scenes_val) >= 1, "data.scenes_train, data.scenes_val: wanted 1 or more"),
        (
            config.train.bn != "frozen" or config.model.init is not None,
            "train.bn: frozen keeps the statistics of a trained network, wanted its folder in model.init",
        ),
        (
            isinstance(factors, str) or factors is None or (min(factors, default=0) >= 0 and any(factors)),
            f"train.class_weights: wanted balanced, enet, or numbers from 0 on, not all 0, got {factors}",
        ),
        _from(1, "optimiser.batch", optimiser.batch),
        (
            optimiser.accumulate >= 1 and optimiser.batch % optimiser.accumulate == 0,
            f"optimiser.accumulate: wanted a divisor of optimiser.batch ({optimiser.batch}), "
            f"got {optimiser.accumulate}",
        ),
        (optimiser.lr > 0, f"optimiser.lr: wanted a positive number, got {optimiser.lr}"),
        _from(0, "optimiser.gate_lr_factor", optimiser.gate_lr_factor),
        (0 <= optimiser.momentum < 1, f"optimiser.momentum: wanted 0 <= momentum < 1, got {optimiser.momentum}"),
        _from(0, "optimiser.weight_decay", optimiser.weight_decay),
        (optimiser.clip_norm > 0, f"optimiser.clip_norm: wanted a positive number, got {optimiser.clip_norm}"),
        _from(1, "schedule.steps", schedule.steps),
        (
            0 <= schedule.warmup_steps <= schedule.steps,
            f"schedule.warmup_steps: wanted 0 to {schedule.steps} (schedule.steps), got {schedule.warmup_steps}",
        ),
        (0 <= schedule.warmup_factor <= 1, f"schedule.warmup_factor: wanted 0 to 1, got {schedule.warmup_factor}"),
        _from(0, "schedule.power", schedule.power),
        (0 <= config.train.ema < 1, f"train.ema: wanted 0 <= decay < 1, got {config.train.ema}"),
        _from(0, "budget.target", config.budget.target),
        _from(0, "evaluation.every", evaluation.every),
        _from(0, "evaluation.precise_bn_batches", evaluation.precise_bn_batches),
        (bool(evaluation.scales), "evaluation.scales: wanted at least one scale, such as [1.0], got []"),
        (
            all(scale > 0 for scale in evaluation.scales),
            f"evaluation.scales: wanted positive numbers, got {list(evaluation.scales)}",
        ),
        _from(1, "evaluation.max_images", evaluation.max_images),
        (bool(run.folder.strip()), f"run.folder: wanted a folder's name, got {run.folder!r}"),
        (0 <= run.seed < MOST_SEED, f"run.seed: wanted 0 to {MOST_SEED - 1}, got {run.seed}"),
        (
            run.threads is None or 1 <= run.threads <= MOST_THREADS,
            f"run.threads: wanted 1 to {MOST_THREADS}, or null, got {run.threads}",
        ),
        _from(1, "run.log_every", run.log_every),
        _from(1, "run.checkpoint_every", run.checkpoint_every),
        _from(2, "run.keep_checkpoints", run.keep_checkpoints),
        _from(1, "run.max_skipped", run.max_skipped),
    ]
    for holds, message in checks:
        if not holds:
            raise ConfigError(message)


def _from(least: int, path: str, value: float | None) -> tuple[bool, str]:
    """A check of a number's lower end, and its message; None is in range."""
    return value is None or value >= least, f"{path}: wanted {least} or more, got {value}"


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All floats of a tree of plain values, with their names."""
    if isinstance(value, float):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        name = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}".lstrip(".")
        yield from _numbers(item, name)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value
