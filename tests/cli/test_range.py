"""`data.range` from a training to whoever uses the network: one rule for what stored values mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.cli import main
from tests.support.pictures import folders
from tests.support.runs import train_tiny


def write_deep(root: Path, split: str, count: int) -> None:
    """Pictures of 12 bits in files of 16, above an offset: the class is what lies in the upper values."""
    images, masks = folders(root, split)
    rng = np.random.default_rng(len(split))
    for n in range(count):
        mask = rng.integers(0, 2, (8, 8), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        values = 1000 + mask.astype(np.uint16) * 3000 + rng.integers(0, 95, mask.shape, dtype=np.uint16)
        Image.fromarray(values).save(images / f"{n}.png")
        Image.fromarray(mask).save(masks / f"{n}.png")


def test_what_training_read_the_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, run = tmp_path / "deep", tmp_path / "run"
    write_deep(root, "train", 4)
    write_deep(root, "val", 2)
    assert main(["data", "check", str(root), "--range", "1000", "4095"]) == 0
    train_tiny(run, "data.kind=folder", f"data.root={root}", "data.range=[1000, 4095]")
    assert json.loads((run / "model/preprocess.json").read_text())["range"] == [1000, 4095]

    def found(*options: str) -> dict:
        assert main([*options, "--json", str(tmp_path / "found.json")]) == 0
        return json.loads((tmp_path / "found.json").read_text())

    trained = json.loads((run / "eval.json").read_text())["pixel_accuracy"]
    for model, data in ((run, []), (run / "model", ["--data", str(root)])):
        assert found("eval", str(model), *data)["pixel_accuracy"] == pytest.approx(trained, abs=1e-3)
    rows = found("segment", str(run / "model"), str(root / "images/val"), "--out", str(tmp_path / "out"))["images"]
    same = [
        np.asarray(Image.open(row["classes"])) == np.asarray(Image.open(root / "masks/val" / Path(row["image"]).name))
        for row in rows
    ]
    assert np.mean(same) == pytest.approx(trained, abs=1e-3)
