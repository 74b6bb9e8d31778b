"""Cityscapes and PASCAL VOC in their official layouts, through every command, with nothing but `data.root`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.cli import main
from dynroute.data.labels import CITYSCAPES, VOC2012
from dynroute.data.voc import COLOURS
from tests.support.commands import fails
from tests.support.official import FRAME, IDS, SIZE, put_cityscapes, put_sbd, put_voc
from tests.support.runs import train_tiny

STEPS = ["schedule.steps=3", "schedule.warmup_steps=1", "data.kind=folder", "optimiser.batch=2"]


@pytest.fixture(scope="session")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_cityscapes(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="session")
def cityscapes_run(cityscapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.getbasetemp() / "cityscapes_run", *STEPS, f"data.root={cityscapes}")


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VOCdevkit with a test list, and SBD's release beside it."""
    root = put_voc(tmp_path_factory.mktemp("voc") / "VOCdevkit")
    (root / "VOC2012/ImageSets/Segmentation/test.txt").write_text("2010_000003\n")
    put_sbd(root.parent)
    return root


@pytest.fixture(scope="session")
def voc_run(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(
        tmp_path_factory.getbasetemp() / "voc_run", *STEPS, f"data.root={voc}", "data.train_split=train_aug"
    )


def classes_of(model: Path, pictures: list[Path], out: Path) -> dict[str, np.ndarray]:
    """What `segment` makes of these pictures, which `eval --submit` must agree with: labels uint8 [H,W] by stem."""
    found = {}
    for picture in pictures:
        assert main(["segment", str(model), str(picture), "--out", str(out)]) == 0
        with Image.open(out / f"{picture.stem}_classes.png") as image:
            found[picture.stem] = np.asarray(image)
    return found


def test_cityscapes_is_checked(cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, sheet = tmp_path / "check.json", tmp_path / "sheet.html"
    assert main(["data", "check", str(cityscapes), "--json", str(record), "--out", str(sheet)]) == 0
    found = json.loads(record.read_text())
    assert [(split["split"], split["images"], split["pairs"]) for split in found["splits"]] == [
        ("train", 3, 3), ("test", 2, 2), ("val", 2, 2),
    ]  # fmt: skip
    assert found["labels"] == "cityscapes" and found["faults"] == [] and found["duplicates"] == []
    assert found["splits"][0]["pixels"]["bicycle"] == 3 * SIZE[0] * 16 and found["splits"][0]["ignored"] == 3 * 48 * 16
    assert found["splits"][1]["said"] == [
        f"{cityscapes / 'gtFine/test'}: no labels, they are not public: there are predictions, but no scores"
    ]
    assert "motorcycle" in capsys.readouterr().out and sheet.read_text().count("data:image/jpeg") == 7


def test_cityscapes_is_trained_on_and_evaluated(
    cityscapes: Path, cityscapes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = json.loads((cityscapes_run / "eval.json").read_text())
    assert list(trained["iou"]) == list(CITYSCAPES.values()) and trained["images"] == 2
    # the run's own data, the same named, and the same in train ids: one result
    train_ids = put_cityscapes(tmp_path / "train_ids", ["labelTrainIds"])
    for data in ((), ("--data", str(cityscapes)), ("--data", str(train_ids)), ("--split", "val")):
        record = tmp_path / "eval.json"
        assert main(["eval", str(cityscapes_run), *data, "--backend", "eager", "--json", str(record)]) == 0
        found = json.loads(record.read_text())
        assert found["pixel_accuracy"] == pytest.approx(trained["pixel_accuracy"], abs=1e-3)
        assert found["per_image"][1]["name"] == f"munster_{FRAME}_leftImg8bit"
    capsys.readouterr()
    assert main(["eval", str(cityscapes_run), "--split", "test", "--json", str(record)]) == 0
    assert "mIoU" in (text := capsys.readouterr().out) and "pixel accuracy -" in text
    found = json.loads(record.read_text())
    assert found["miou"] is None and found["images"] == 2 and found["executed_macs"] > 0


def test_cityscapes_in_train_ids_is_trained_on(tmp_path: Path) -> None:
    root = put_cityscapes(tmp_path / "data", ["labelTrainIds"])
    assert main(["data", "check", str(root), "--split", "train", "val"]) == 0
    run = train_tiny(tmp_path / "run", *STEPS, f"data.root={root}")
    assert list(json.loads((run / "eval.json").read_text())["iou"]) == list(CITYSCAPES.values())


def test_cityscapes_run_is_reported(cityscapes_run: Path, tmp_path: Path) -> None:
    assert main(["report", str(cityscapes_run), "--images", "1", "--out", str(tmp_path / "report.html")]) == 0
    assert "bicycle" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("split", "masks"), [("val", True), ("test", True), ("test", False)])
def test_cityscapes_predictions_for_the_server(
    cityscapes: Path, cityscapes_run: Path, split: str, masks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = cityscapes
    if not masks:
        root = put_cityscapes(tmp_path / "data")
        (root / "gtFine/test").rename(root / "test")
    out, record = tmp_path / "out", tmp_path / "eval.json"
    out.mkdir()
    command = ["eval", str(cityscapes_run), "--data", str(root), "--split", split, "--submit", str(out)]
    assert main([*command, "--json", str(record)]) == 0
    assert f"2 predictions in {out}" in capsys.readouterr().out
    assert json.loads(record.read_text())["submitted"] == str(out)
    pictures = sorted((root / f"leftImg8bit/{split}").rglob("*.png"))
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in pictures)
    ids = np.array(list(CITYSCAPES), dtype=np.uint8)
    for name, labels in classes_of(cityscapes_run, pictures, tmp_path / "segmented").items():
        with Image.open(out / f"{name}.png") as image:
            assert image.mode == "L" and image.size == SIZE[::-1]
            np.testing.assert_array_equal(np.asarray(image), ids[labels])
    assert f"submit: {out}: wanted a new or an empty folder, this holds 2 (such as" in fails(capsys, *command)
    assert len(list(out.iterdir())) == 2 and not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_is_submitted_where_an_image_is_broken(
    cityscapes_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = put_cityscapes(tmp_path / "data")
    picture = root / f"leftImg8bit/val/munster/munster_{FRAME}_leftImg8bit.png"
    picture.write_bytes(picture.read_bytes()[:60])
    out = tmp_path / "out"
    line = fails(capsys, "eval", str(cityscapes_run), "--data", str(root), "--submit", str(out))
    assert str(picture) in line and sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_submit_wants_a_benchmark_and_its_classes(
    cityscapes: Path, voc: Path, cityscapes_run: Path, tiny_run: Path, folder_data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = ("--submit", str(tmp_path / "out"))
    wanted = "submit: wanted Cityscapes or PASCAL VOC 2012 as they are distributed, got "
    assert fails(capsys, "eval", str(tiny_run), *out) == f"{wanted}ScenesDataset"
    assert fails(capsys, "eval", str(tiny_run), "--data", str(folder_data), *out) == f"{wanted}{folder_data}"
    assert f"{cityscapes}: 19 classes named, but 7 wanted" in fails(
        capsys, "eval", str(tiny_run), "--data", str(cityscapes), *out
    )
    assert f"{voc}: 21 classes named, but 19 wanted" in fails(
        capsys, "eval", str(cityscapes_run), "--data", str(voc), *out
    )
    model = tmp_path / "model"
    model.mkdir()
    for path in (cityscapes_run / "model").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    kept = json.loads((model / "preprocess.json").read_text())
    kept["class_names"] = [name.replace("sidewalk", "pavement") for name in kept["class_names"]]
    (model / "preprocess.json").write_text(json.dumps(kept))
    line = fails(capsys, "eval", str(model), "--data", str(cityscapes), *out)
    assert line == "submit: wanted a network of the 19 classes of cityscapes, this one has pavement"
    (tmp_path / "out").write_text("a file")
    line = fails(capsys, "eval", str(cityscapes_run), *out)
    assert line == f"submit: {tmp_path / 'out'}: wanted a folder, this is a file"
    assert "--split: wanted with --data ROOT" in fails(capsys, "eval", str(tiny_run), "--split", "test")


def test_training_wants_labels(cityscapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("train", "val"):
        values = [*STEPS, f"data.root={cityscapes}", f"data.{part}_split=test"]
        line = fails(capsys, "train", "scenes_quick", "--set", *values, "--run", str(tmp_path / "run"))
        assert line == f"data.{part}_split: wanted a split with labels, got test of {cityscapes}"
    assert not (tmp_path / "run/model").exists()


def test_voc_is_checked(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "check.json"
    assert main(["data", "check", str(voc), "--json", str(record), "--out", str(tmp_path / "sheet.html")]) == 0
    found = json.loads(record.read_text())
    assert found["labels"] == "voc2012" and found["faults"] == [] and found["class_names"] == list(VOC2012)
    assert [(split["split"], split["images"], split["pairs"]) for split in found["splits"]] == [
        ("train", 3, 3), ("test", 1, 0), ("val", 2, 2),
    ]  # fmt: skip
    splits = ("--split", "train", "train_aug")
    assert main(["data", "check", str(voc), *splits, "--json", str(record)]) == 0
    found = json.loads(record.read_text())
    assert found["splits"][1]["pairs"] == 5 and found["splits"][1]["pixels"]["tvmonitor"] > 0
    first = voc / f"VOC2012/JPEGImages/{IDS['train'][0]}.jpg"
    assert f"{first}: in train too; 3 of the 5 images are" in found["splits"][1]["said"]
    assert found["duplicates"] == []


def test_voc_without_sbd_is_trained_on(tmp_path: Path) -> None:
    root = put_voc(tmp_path / "VOCdevkit")
    run = train_tiny(tmp_path / "run", *STEPS, f"data.root={root}")
    assert list(json.loads((run / "eval.json").read_text())["iou"]) == list(VOC2012)


def test_voc_predictions_for_the_server(voc: Path, voc_run: Path, tmp_path: Path) -> None:
    assert json.loads((voc_run / "eval.json").read_text())["images"] == 2
    out = tmp_path / "out"
    for split, names in (("val", IDS["val"]), ("test", ("2010_000003",))):
        assert main(["eval", str(voc_run), "--split", split, "--submit", str(out)]) == 0
        folder = out / f"results/VOC2012/Segmentation/comp6_{split}_cls"
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.png" for name in names]
        pictures = [voc / f"VOC2012/JPEGImages/{name}.jpg" for name in names]
        for name, labels in classes_of(voc_run, pictures, tmp_path / f"segmented_{split}").items():
            with Image.open(folder / f"{name}.png") as image:
                assert image.mode == "P" and image.getpalette() == COLOURS.ravel().tolist()
                np.testing.assert_array_equal(np.asarray(image), labels)
