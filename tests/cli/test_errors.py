"""Bad input: one clear line on stderr, a status that is not 0, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynroute import planner
from dynroute.cli import main
from tests.support.commands import fails


def test_missing_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = fails(capsys, "eval", str(tmp_path / "nowhere"))
    assert "nowhere" in line and "dynamic_tiny" in line


def test_folder_that_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in fails(capsys, "eval", str(tmp_path))
    assert "config.yaml" in fails(capsys, "report", str(tmp_path))


def test_broken_weights(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_run / "model", model)
    (model / "model.safetensors").write_bytes(b"not weights")
    assert "model.safetensors" in fails(capsys, "flops", str(model), "--size", "64x64")


def test_wrong_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    other = tmp_path / "resnet.pth"
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, other)
    assert "resnet.pth" in fails(capsys, "eval", str(other), "--data", "scenes")
    other.write_text("text")
    assert "resnet.pth" in fails(capsys, "segment", str(other), str(tmp_path), "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_other_class_count(capsys: pytest.CaptureFixture[str], tiny_run: Path, folder_data: Path) -> None:
    (folder_data / "classes.txt").write_text("a\nb\nc\n")
    line = fails(capsys, "eval", str(tiny_run), "--data", str(folder_data))
    assert "3 classes" in line and "7" in line


def test_mask_value_out_of_range(capsys: pytest.CaptureFixture[str], tiny_run: Path, folder_data: Path) -> None:
    Image.fromarray(np.full((48, 64), 99, dtype=np.uint8)).save(folder_data / "masks/val/p1.png")
    line = fails(capsys, "eval", str(tiny_run), "--data", str(folder_data))
    assert "p1.png" in line and "99" in line


def test_missing_split(capsys: pytest.CaptureFixture[str], tiny_run: Path, folder_data: Path) -> None:
    assert "test" in fails(capsys, "eval", str(tiny_run), "--data", str(folder_data), "--split", "test")


def test_segment_writes_nothing_when_one_image_is_broken(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, folder_data: Path, tmp_path: Path
) -> None:
    images, out = folder_data / "images/val", tmp_path / "out"
    whole = (images / "p2.png").read_bytes()
    (images / "p2.png").write_bytes(whole[: len(whole) // 2])
    assert "p2.png" in fails(capsys, "segment", str(tiny_run), str(images), "--out", str(out))
    assert not out.exists()
    assert "no such" in fails(capsys, "segment", str(tiny_run), str(tmp_path / "none.jpg"), "--out", str(out))
    (tmp_path / "empty").mkdir()
    assert "no image" in fails(capsys, "segment", str(tiny_run), str(tmp_path / "empty"), "--out", str(out))
    assert "random weights" in fails(capsys, "segment", "dynamic_tiny", str(images), "--out", str(out))
    assert not out.exists()


def test_gpu_is_refused(capsys: pytest.CaptureFixture[str], tiny_run: Path, folder_data: Path, tmp_path: Path) -> None:
    assert "cuda" in fails(capsys, "eval", str(tiny_run), "--device", "cuda")
    assert "cuda" in fails(capsys, "bench", str(tiny_run), "--device", "cuda:0")
    images = str(folder_data / "images/val")
    assert "cuda" in fails(capsys, "segment", str(tiny_run), images, "--out", str(tmp_path / "o"), "--device", "cuda")


def test_train_errors(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert "nothing.yaml" in fails(capsys, "train", "nothing.yaml", "--run", folder)
    assert "optimiser.lt" in fails(capsys, "train", "scenes_quick", "--set", "optimiser.lt=1", "--run", folder)
    assert "/no/such/place" in fails(capsys, "train", "camvid", "--set", "data.root=/no/such/place", "--run", folder)
    assert "checkpoint" in fails(capsys, "train", "scenes_quick", "--run", folder, "--resume")
    assert not Path(folder).exists()
    assert "already holds a run" in fails(capsys, "train", "scenes_quick", "--run", str(tiny_run))


def test_flops_errors(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["flops", "dynamic_tiny", "--size", "64"])
    assert "1024x2048" in capsys.readouterr().err
    assert "unet" in fails(capsys, "flops", "dynamic_tiny", "--size", "64x64", "--gates", "nothing")
    assert "--images" in fails(capsys, "flops", "dynamic_tiny", "--size", "64x64", "--gates", "own")
    # gates of a run with another number of layers
    assert "shape" in fails(capsys, "flops", "dynamic_raw_l16", "--size", "64x64", "--gates", str(tiny_run))


def test_bench_of_a_run_takes_no_size(capsys: pytest.CaptureFixture[str], tiny_run: Path) -> None:
    assert "--size" in fails(capsys, "bench", str(tiny_run), "--size", "64x64")


def test_bench_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert "MODEL" in fails(capsys, "bench")


@pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not()))
def test_bench_tune_writes_over_no_other_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "DYNROUTE_TUNING=off" in fails(capsys, "bench", "--tune", "dynamic_tiny")
    other = tmp_path / "notes.txt"
    other.write_text("notes")
    monkeypatch.setenv("DYNROUTE_TUNING", str(other))
    assert "notes.txt" in fails(capsys, "bench", "--tune", "dynamic_tiny", "--size", "64x64")
    assert other.read_text() == "notes"
    monkeypatch.setenv("DYNROUTE_TUNING", str(tmp_path / "tuning.json"))
    assert "reference" in fails(capsys, "bench", "--tune", "dynamic_tiny", "--backend", "reference")


def test_json_into_a_missing_folder_fails_before_the_work(
    capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path
) -> None:
    record = tmp_path / "missing/eval.json"
    assert "--json" in fails(capsys, "eval", str(tiny_run), "--json", str(record))
    assert not record.parent.exists()


def test_unfinished_run(capsys: pytest.CaptureFixture[str], tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny_run / "config.yaml", run)
    assert "not finished" in fails(capsys, "report", str(run))
    shutil.copytree(tiny_run / "model", run / "model")
    assert "eval.json" in fails(capsys, "report", str(run))
    (run / "eval.json").write_text("{")
    assert "not JSON" in fails(capsys, "report", str(run))
    (run / "eval.json").write_text(json.dumps({"other": 1}))
    assert "miou" in fails(capsys, "report", str(run))
    assert not (run / "report.html").exists()


def test_error_of_a_loading_process_is_one_line(
    capsys: pytest.CaptureFixture[str], folder_data: Path, tmp_path: Path
) -> None:
    for kind in ("images", "masks"):
        shutil.copytree(folder_data / kind / "val", folder_data / kind / "train")
    broken = folder_data / "images/train/p1.png"  # found where it is decoded: masks are read before
    broken.write_bytes(broken.read_bytes()[:200])
    values = [f"data.root={folder_data}", "data.cache=false", "data.workers=1", "data.crop=[32,32]"]
    line = fails(capsys, "train", "camvid", "--set", *values, "--run", str(tmp_path / "run"))
    assert "p1.png: broken image" in line and "Traceback" not in line and len(line) < 300
