"""Tiny training runs, and a data set in a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dynroute.cli import main
from dynroute.train import Config, load_config

TINY = [
    "schedule.steps=10", "schedule.warmup_steps=2", "data.scenes_size=64", "data.scenes_train=16", "data.scenes_val=6",
    "data.crop=[64,64]", "data.workers=0", "optimiser.batch=4", "evaluation.precise_bn_batches=1", "run.log_every=2",
    "run.checkpoint_every=5",
]  # fmt: skip


def train_tiny(folder: Path, *overrides: str) -> Path:
    """A run of ten steps in this folder, by the command line."""
    assert main(["train", "scenes_quick", "--set", *TINY, *overrides, "--run", str(folder)]) == 0
    return folder


def make_folder_data(root: Path) -> Path:
    """Three images of 64x48 with labels 0..6."""
    rng = np.random.default_rng(0)
    (root / "images/val").mkdir(parents=True)
    (root / "masks/val").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / f"images/val/p{i}.png")
        Image.fromarray(rng.integers(0, 7, (48, 64), dtype=np.uint8)).save(root / f"masks/val/p{i}.png")
    return root


SMALL = [
    "data.kind=scenes", "data.scenes_size=64", "data.scenes_train=32", "data.scenes_val=4", "data.crop=[64, 64]",
    "data.std=[57, 57, 57]", "data.jitter=0.2", "data.workers=0", "model.name=dynamic_tiny", "model.layers=4",
    "model.drop_prob=0.3", "optimiser.batch=2", "schedule.steps=8", "schedule.warmup_steps=2", "budget.weight=0.8",
    "evaluation.precise_bn_batches=2", "run.log_every=1", "run.checkpoint_every=4", "run.threads=1",
]  # fmt: skip


def small(folder: Path, *overrides: str) -> Config:
    return load_config(None, [*SMALL, f"run.folder={folder}", *overrides])
