"""Images of one and of four channels through the commands: checked, trained on, evaluated, segmented, reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import dynroute
from dynroute.cli import main
from dynroute.train import load_config
from dynroute.train.parse import ConfigError
from tests.support.commands import fails
from tests.support.pictures import folders

STEPS = [
    "schedule.steps=3", "schedule.warmup_steps=1", "optimiser.batch=2",
    "data.crop=[64,64]", "data.jitter=0.2", "data.workers=0", "evaluation.precise_bn_batches=1", "run.threads=1",
]  # fmt: skip


def train(root: Path, run: Path, *settings: str) -> list[str]:
    """The command that trains for three steps on the data set."""
    config = run.with_suffix(".yaml")
    config.write_text("model: {name: dynamic_tiny, layers: 4}\n")
    return ["train", str(config), "--set", f"data.root={root}", *STEPS, *settings, "--run", str(run)]


def write_data(root: Path, channels: int, suffix: str) -> Path:
    """Three images of 72x80 in both splits: noise of 16 bits, brighter in the first channel where the label is 1."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        images, masks = folders(root, split)
        for k in range(3):
            mask = np.zeros((80, 72), dtype=np.uint8)
            mask[:, 20 * k :] = 1
            values = rng.integers(0, 20000, (80, 72, channels), dtype=np.uint16)
            values[..., 0] += mask * np.uint16(30000)
            if suffix == ".npy":
                np.save(images / f"{k}.npy", values)
            elif channels == 1:
                Image.fromarray(values[..., 0]).save(images / f"{k}.png")
            else:
                tifffile.imwrite(images / f"{k}.tif", values, photometric="minisblack", planarconfig="contig")
            Image.fromarray(mask).save(masks / f"{k}.png")
    return root


@pytest.mark.parametrize("channels, suffix", [(1, ".png"), (4, ".tif"), (5, ".npy")])
def test_from_check_to_segment(tmp_path: Path, channels: int, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = write_data(tmp_path / "data", channels, suffix), tmp_path / "run"
    many = ["--channels", str(channels)]
    sheet = tmp_path / "sheet.html"
    assert main(["data", "check", str(root), *many, "--out", str(sheet)]) == 0
    assert sheet.read_text().count("data:image/jpeg") == 6 and "72x80" in capsys.readouterr().out
    assert "6 faults" in fails(capsys, "data", "check", str(root), "--channels", "2")

    assert main(train(root, run, f"data.channels={channels}")) == 0
    net = dynroute.from_pretrained(run)
    assert net.config.in_channels == channels and net.preprocess is not None
    assert net.preprocess["mean"] == [127.5] * channels and net.preprocess["std"] == [57.0] * channels
    assert load_config(run / "config.yaml").data.mean == (127.5,) * channels

    record = tmp_path / "eval.json"
    assert main(["eval", str(run), "--json", str(record)]) == 0
    own = json.loads(record.read_text())["miou"]
    assert main(["eval", str(run), "--data", str(root), "--json", str(record)]) == 0
    assert json.loads(record.read_text())["miou"] == own

    assert main(["segment", str(run), str(root / "images/val"), "--out", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out/0_classes.png").size == (72, 80)
    assert Image.open(tmp_path / "out/0_overlay.png").mode == "RGB"
    colour = tmp_path / "colour.jpg"
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(colour)
    word = "channel" if channels == 1 else "channels"
    line = fails(capsys, "segment", str(run), str(colour), "--out", str(tmp_path / "more"))
    assert line == f"{colour}: wanted {channels} {word} (data.channels), got 3"
    assert "scenes: images of 3 channels" in fails(capsys, "eval", str(run), "--data", "scenes")

    assert main(["flops", str(run), "--images", str(root / "images/val")]) == 0
    if channels == 4:
        assert main(["report", str(run), "--images", "1", "--observe", "1"]) == 0


def test_a_run_goes_on_with_its_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = write_data(tmp_path / "data", 4, ".npy"), tmp_path / "run"
    assert main(train(root, run, "data.channels=4")) == 0
    longer = [*train(root, run, "data.channels=4", "schedule.steps=4"), "--resume"]
    line = fails(capsys, *train(root, run, "data.channels=3", "schedule.steps=4"), "--resume")
    assert "data.channels: the run to resume has 4, got 3" in line
    assert main(longer) == 0
    line = fails(capsys, *train(root, tmp_path / "three"))
    assert line.endswith(".npy: wanted 3 channels (data.channels), got 4")


@pytest.mark.parametrize(
    "settings, message",
    [
        (["data.channels=0"], "data.channels: wanted 1 or more, got 0"),
        (["data.channels=4", "data.mean=[1, 2, 3]"], r"data.mean: wanted 4 numbers \(data.channels\), got \(1.0, 2.0"),
        (["data.std=[1, 2]"], r"data.std: wanted 3 numbers \(data.channels\), got \(1.0, 2.0\)"),
        (["data.channels=4", "model.in_channels=3"], r"model.in_channels: wanted 4 \(data.channels\), got 3"),
        (["data.kind=scenes", "data.channels=1"], "data.channels: wanted 3, which scenes have, got 1"),
    ],
)
def test_configurations_that_do_not_fit(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, ["data.root=/data", *settings])
