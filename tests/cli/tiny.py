"""One tiny training run for all tests of the command line, and a data set in a folder."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.cli import main

TINY = [
    "schedule.steps=10", "schedule.warmup_steps=2", "data.scenes_size=64", "data.scenes_train=16", "data.scenes_val=6",
    "data.crop=[64,64]", "data.workers=0", "optimiser.batch=4", "evaluation.precise_bn_batches=1", "run.log_every=2",
    "run.checkpoint_every=5",
]  # fmt: skip


@functools.cache
def _trained(base: Path) -> Path:
    folder = base / "tiny_run"
    assert main(["train", "scenes_quick", "--set", *TINY, "--run", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of ten steps, trained once whichever modules import this."""
    return _trained(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder_data(tmp_path: Path) -> Path:
    """Three images of 64x48 with labels 0..6."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    (root / "images/val").mkdir(parents=True)
    (root / "masks/val").mkdir(parents=True)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(root / f"images/val/p{i}.png")
        Image.fromarray(rng.integers(0, 7, (48, 64), dtype=np.uint8)).save(root / f"masks/val/p{i}.png")
    return root
