"""`dynroute data check`, and what other commands make of pictures and masks that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.cli import main
from dynroute.data.labels import SCHEMES
from dynroute.train import load_config
from tests.support.commands import fails
from tests.support.pictures import BANDS, exif, folders, write_bomb, write_pair
from tests.support.runs import train_tiny


def test_check_of_a_whole_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, split in enumerate(("train", "val")):
        for i in range(14):
            write_pair(tmp_path, stem=f"p{i}", split=split, shade=20 * k + i)
    (tmp_path / "classes.txt").write_text("sky\nroad & path\ncar\n")
    (tmp_path / "images/val/.DS_Store").write_bytes(b"\0")
    record, sheet = tmp_path / "check.json", tmp_path / "sheet.html"
    assert main(["data", "check", str(tmp_path), "--json", str(record), "--out", str(sheet)]) == 0
    text = capsys.readouterr().out
    assert "336 (33.3%)" in text and "road & path" in text and ".DS_Store" in text and "12x6" in text
    found = json.loads(record.read_text())
    assert [split["split"] for split in found["splits"]] == ["train", "val"]
    assert found["splits"][0]["pixels"] == {"sky": 336, "road & path": 336, "car": 336}
    assert found["faults"] == [] and "versions" in found
    page = sheet.read_text()
    assert page.count("<figure>") == page.count('<img alt="" src="data:image/jpeg;base64,') == 24
    assert "road &amp; path" in page and "p0.png" in page and "p13.png" in page


def test_check_fails_where_a_training_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    write_pair(root, BANDS // 2 * np.uint8(255))
    record, sheet = tmp_path / "check.json", tmp_path / "sheet.html"
    options = ("data", "check", str(root), "--json", str(record), "--out", str(sheet))
    assert "1 fault" in fails(capsys, *options)
    assert "data.labels: binary" in json.loads(record.read_text())["faults"][0]
    assert "data.labels: binary" in sheet.read_text()
    assert main([*options, "--labels", "binary"]) == 0
    assert main([*options, "--labels", "{255: 1}"]) == 0
    assert json.loads(record.read_text())["labels"] == {"255": 1}
    write_bomb(root / "images/train/a.png")
    assert "1 fault" in fails(capsys, *options, "--labels", "binary")
    assert main(list(options)) == 1
    assert "a.png: not a readable image (Image size (900000000 pixels)" in capsys.readouterr().out
    assert "not a readable image" in sheet.read_text()


def test_check_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere/images: no such folder" in fails(capsys, "data", "check", str(tmp_path / "nowhere"))
    write_pair(tmp_path)
    assert "images/test: no such folder" in fails(capsys, "data", "check", str(tmp_path), "--split", "test")
    line = fails(capsys, "data", "check", str(tmp_path), "--out", str(tmp_path / "none/sheet.html"))
    assert "--out" in line and not (tmp_path / "none").exists()
    with pytest.raises(SystemExit):
        main(["data", "check", str(tmp_path), "--labels", "{a: b}"])
    assert f"wanted {', '.join(SCHEMES)}, or a map" in capsys.readouterr().err


def test_check_of_a_long_list_of_faults_stays_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(30):
        write_pair(tmp_path, stem=f"p{k}")
        (tmp_path / f"images/train/p{k}.png").write_text("text")
    assert "30 faults" in fails(capsys, "data", "check", str(tmp_path))
    main(["data", "check", str(tmp_path)])
    text = capsys.readouterr().out
    assert text.count("not a readable image") == 10 and "and 20 more" in text


def test_segment_turns_a_photograph_upright(tiny_run: Path, tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    images, _ = folders(tmp_path)
    Image.fromarray(upright).save(images / "upright.png")
    Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1))).save(images / "turned.png", exif=exif(6))
    Image.fromarray(upright).save(images / "tiff.tif")
    (images / "._upright.png").write_bytes(b"\0\5\x16\7")
    out = tmp_path / "out"
    assert main(["segment", str(tiny_run), str(images), "--out", str(out)]) == 0
    whole = np.asarray(Image.open(out / "upright_classes.png"))
    assert whole.shape == (48, 64)
    for name in ("turned", "tiff"):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}_classes.png")), whole)
    assert len(list(out.iterdir())) == 6


def test_segment_scales_16_bits(tiny_run: Path, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint16)
    images, _ = folders(tmp_path)
    Image.fromarray(grey.astype(np.uint8)).save(images / "eight.png")
    Image.fromarray(grey * np.uint16(257)).save(images / "sixteen.png")
    Image.fromarray((grey / 255).astype(np.float32)).save(images / "float.tif")
    out = tmp_path / "out"
    assert main(["segment", str(tiny_run), str(images), "--out", str(out)]) == 0
    for name in ("sixteen", "float"):
        one, other = (np.asarray(Image.open(out / f"{n}_classes.png")) for n in ("eight", name))
        np.testing.assert_array_equal(one, other)


def test_eval_reads_masks_as_it_is_told(
    tiny_run: Path, folder_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    plain = ("eval", str(tiny_run), "--data", str(folder_data))
    assert main([*plain, "--json", str(tmp_path / "plain.json")]) == 0
    for path in (folder_data / "masks/val").iterdir():
        with Image.open(path) as image:
            values = np.array(image)
        Image.fromarray(np.where(values == 6, 200, values).astype(np.uint8)).save(path)
    assert "label 200 found, wanted 0..6" in fails(capsys, *plain)
    assert main([*plain, "--labels", "{200: 6}", "--json", str(tmp_path / "mapped.json")]) == 0
    for name in ("plain", "mapped"):
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())["iou"]
    assert found["plain"] == found["mapped"]
    assert main([*plain, "--ignore", "200", "--json", str(tmp_path / "mapped.json")]) == 0
    assert "--labels, --ignore: wanted with --data" in fails(capsys, "eval", str(tiny_run), "--labels", "binary")


def test_training_is_refused_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path / "data", BANDS // 2 * np.uint8(255), split=split)
    values = [f"data.root={tmp_path / 'data'}", "data.workers=0", "data.crop=[32, 32]", "model.num_classes=null"]
    values += ["schedule.steps=1", "schedule.warmup_steps=0"]
    line = fails(capsys, "train", "camvid", "--set", *values, "--run", str(tmp_path / "run"))
    assert "masks/train/a.png: values 0, 255 alone" in line and "data.labels: binary" in line
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_run_keeps_what_its_masks_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, bands = tmp_path / "data", np.repeat(np.repeat(BANDS // 2 * np.uint8(255), 10, axis=0), 5, axis=1)
    for split in ("train", "val"):
        for k in range(4):
            write_pair(data, bands, stem=f"p{k}", split=split, shade=k)
    options = ["data.kind=folder", f"data.root={data}", "data.labels=binary"]
    run = train_tiny(tmp_path / "run", *options)
    assert load_config(run / "config.yaml").data.labels == "binary"
    trained = json.loads((run / "eval.json").read_text())
    assert list(trained["iou"]) == ["class_0", "class_1"] and trained["config"]["data"]["labels"] == "binary"
    # the run's own data, and the same named again, mean what they meant in training
    for extra in ((), ("--data", str(data))):
        assert main(["eval", str(run), *extra, "--backend", "eager", "--json", str(tmp_path / "eval.json")]) == 0
        found = json.loads((tmp_path / "eval.json").read_text())
        assert found["pixel_accuracy"] == pytest.approx(trained["pixel_accuracy"], abs=1e-3)
    assert "values 0, 255 alone" in fails(capsys, "eval", str(run / "model"), "--data", str(data), "--labels", "{3: 3}")
