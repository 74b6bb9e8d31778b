"""From a folder to shards, and from there all the way, by the command line; and folders of classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.cli import main
from dynroute.data.shards import shard_images
from dynroute.train import load_config
from tests.support.commands import fails
from tests.support.pictures import BANDS, write_pair
from tests.support.runs import train_tiny
from tests.support.shards import picture, png, write_shards, write_tar

LARGE = np.repeat(np.repeat(BANDS, 10, axis=0), 5, axis=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of pictures of 60x60, whose masks store 0, 1 and 2."""
    for place, (split, samples) in enumerate((("train", 5), ("val", 2))):
        for k in range(samples):
            write_pair(tmp_path / "data", LARGE, stem=f"p{k}", split=split, shade=100 * place + k)
    (tmp_path / "data/classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path / "data"


def test_pack_check_train_and_eval(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, record = tmp_path / "shards", tmp_path / "record.json"
    assert main(["data", "pack", str(folder), "--out", str(out), "--size-mb", "1", "--json", str(record)]) == 0
    text = capsys.readouterr().out
    assert f"written to {out}; next: dynroute data check {out}" in text
    packed = json.loads(record.read_text())["splits"]
    assert [(split["split"], split["samples"]) for split in packed] == [("train", [5]), ("val", [2])]
    assert sorted(path.name for path in out.iterdir()) == ["classes.txt", "train-000000.tar", "val-000000.tar"]

    sheet = tmp_path / "sheet.html"
    assert main(["data", "check", str(out), "--json", str(record), "--out", str(sheet)]) == 0
    assert "nothing that a training would refuse" in capsys.readouterr().out
    found = json.loads(record.read_text())
    assert [(split["split"], split["pairs"]) for split in found["splits"]] == [("train", 5), ("val", 2)]
    assert found["splits"][1]["pixels"] == {"sky": 2400, "road": 2400, "car": 2400}
    assert sheet.read_text().count('<img alt="" src="data:image/jpeg;base64,') == 7

    pattern = f"{out}/{{train,val}}-{{000000..000000}}.tar"
    options = ["schedule.steps=3", "data.shard_window=2", "data.workers=1", "model.layers=4"]
    run = train_tiny(tmp_path / "run", "data.kind=shards", f"data.root={json.dumps(pattern)}", *options)
    assert load_config(run / "config.yaml").data.shard_window == 2
    trained = json.loads((run / "eval.json").read_text())
    assert list(trained["iou"]) == ["sky", "road", "car"] and trained["images"] == 2
    scores = []
    for data in ([], ["--data", str(out)], ["--data", f"{out}/*.tar"], ["--data", str(folder)]):
        assert main(["eval", str(run), *data, "--backend", "eager", "--json", str(record)]) == 0
        scores.append(json.loads(record.read_text())["iou"])
    assert all(score == scores[0] for score in scores)


def test_a_run_goes_on_with_the_same_shards(tmp_path: Path) -> None:
    """What a run of six steps sees after three is what it sees when it is stopped there and goes on."""
    write_shards(tmp_path / "data", samples=9, mask=LARGE)
    write_shards(tmp_path / "data", "val", 2, mask=LARGE, first=20)
    options = [
        "data.kind=shards", f"data.root={tmp_path / 'data'}", "schedule.steps=6", "run.checkpoint_every=3",
        "run.log_every=1", "data.shard_window=2", "run.keep_checkpoints=5", "model.drop_prob=0.2", "model.layers=4",
    ]  # fmt: skip
    whole, cut = train_tiny(tmp_path / "whole", *options), tmp_path / "cut"
    records = (whole / "log.jsonl").read_text().splitlines(keepends=True)
    shutil.copytree(whole, cut, ignore=shutil.ignore_patterns("step-0000006*", "model", "eval.json"))
    (cut / "log.jsonl").write_text("".join(line for line in records if json.loads(line).get("step", 0) <= 3))
    assert main(["train", str(cut / "config.yaml"), "--run", str(cut), "--resume"]) == 0
    again = (cut / "log.jsonl").read_text().splitlines()
    losses = [
        {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}
        for lines in (records, again)
    ]
    assert losses[0] == losses[1] and list(losses[1]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["data.kind=shards"], "data.root: wanted the folder of the data set"),
        (["data.kind=shards", "data.root=x", "data.shard_window=0"], "data.shard_window: wanted 1 or more, got 0"),
        (
            ["data.kind=shards", "data.root=/nowhere"],
            "/nowhere: no such folder or shard, wanted such as train-000000.tar",
        ),
        (["data.kind=tars"], "data.kind: wanted one of folder, shards, scenes"),
    ],
)
def test_configurations_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: list[str], words: str
) -> None:
    line = fails(capsys, "train", "scenes_quick", "--set", *values, "--run", str(tmp_path / "run"))
    assert words in line and not (tmp_path / "run/config.yaml").exists()


def test_pack_of_some_splits_and_its_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    plain = ("data", "pack", str(folder))
    assert "pack: wanted --out, the shards' folder" in fails(capsys, *plain)
    assert "images/test: no such folder" in fails(capsys, *plain, "--out", str(out), "--split", "test")
    assert not out.exists()
    assert main([*plain, "--out", str(out), "--split", "val", "--keep-order"]) == 0
    assert [member.key for member in shard_images(out)] == ["p0", "p1"]
    assert "shards of the split 'val' are there already" in fails(capsys, *plain, "--out", str(out), "--split", "val")
    assert main([*plain, "--out", str(out), "--split", "train"]) == 0
    assert "--size-mb, --keep-order: wanted with pack" in fails(capsys, "data", "check", str(out), "--size-mb", "3")


def test_pack_maps_labels(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_pair(tmp_path / "data", BANDS // 2 * np.uint8(255), split=split, shade=len(split))
    out = str(tmp_path / "shards")
    assert main(["data", "pack", str(tmp_path / "data"), "--out", out, "--labels", "binary"]) == 0
    assert main(["data", "check", out, "--json", str(tmp_path / "check.json")]) == 0
    train = json.loads((tmp_path / "check.json").read_text())["splits"][0]
    assert train["pixels"] == {"class_0": 48, "class_1": 24}


def test_check_says_all_that_is_wrong_with_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {f"{k}.{kind}": part for k in range(4) for kind, part in (("png", picture(k)), ("mask.png", png(BANDS)))}
    del members["1.mask.png"]
    members |= {"2.png": b"text", "3.mask.png": png(BANDS[:, :6].copy()), "._0.png": b"", "0.json": b"{}"}
    write_tar(tmp_path / "train-000000.tar", members)
    broken = write_tar(tmp_path / "train-000001.tar", {"9.png": picture(9), "9.mask.png": png(BANDS)})
    broken.write_bytes(broken.read_bytes()[:700])
    assert "4 faults" in fails(capsys, "data", "check", str(tmp_path), "--json", str(tmp_path / "check.json"))
    main(["data", "check", str(tmp_path)])
    text = capsys.readouterr().out
    first = f"{tmp_path}/train-000000.tar: "
    for line in (
        f"{first}1.mask.png: no such mask, wanted one for the image {first}1.png",
        f"{first}2.png: not a readable image",
        f"{first}3.mask.png: size 6x6, but its image 3.png is 12x6",
        f"{broken}: not a readable tar (unexpected end of data)",
        f"{first}._0.png",
        f"{first}0.json",
    ):
        assert line in text


def test_check_of_folders_of_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, split in enumerate(("train", "val")):
        for number in range(45):
            (tmp_path / split / f"n{number:02d}").mkdir(parents=True)
            for k in range(1 + number // 15):
                pixels = np.full((4, 5, 3), (place * 100 + number, k, 0), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / f"n{number:02d}" / f"{k}.png")
    record = tmp_path / "check.json"
    assert main(["data", "check", str(tmp_path), "--json", str(record)]) == 0
    text = capsys.readouterr().out
    assert "45 classes, one folder each" in text and "the 10 classes with the fewest images and the 10 with" in text
    assert "n00" in text and "n44" in text and "n20" not in text and "nothing that a training would refuse" in text
    found = json.loads(record.read_text())
    assert found["splits"][0]["counts"]["n44"] == 3 and found["splits"][0]["images"] == 90 and "versions" in found
    (tmp_path / "val/n99").mkdir()
    (tmp_path / "train/n44/0.png").write_text("text")
    assert "2 faults" in fails(capsys, "data", "check", str(tmp_path))
    main(["data", "check", str(tmp_path)])
    text = capsys.readouterr().out
    assert f"{tmp_path}/val/n99: no class of {tmp_path}/train" in text
    assert f"{tmp_path}/train/n44/0.png: not a readable image" in text
    assert "--out, --labels, --ignore: wanted with masks" in fails(
        capsys, "data", "check", str(tmp_path), "--labels", "binary"
    )


def test_segment_shards_and_go_on(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {f"street/{k}.png": picture(10 * k, LARGE) for k in range(4)}
    write_tar(tmp_path / "shards/a-0.tar", members | {"street/1.mask.png": png(LARGE)})
    write_tar(tmp_path / "shards/a-1.tar", {"5.png": picture(1, LARGE)[:-30], "6.png": picture(3, LARGE)})
    out, record = tmp_path / "out", tmp_path / "segment.json"
    plain = ("segment", str(tiny_run), str(tmp_path / "shards"), "--out", str(out), "--only", "classes")
    assert "a-1.tar: 5.png: broken image" in fails(capsys, *plain)
    assert "1 " in fails(capsys, *plain, "--skip-broken")
    names = [f"street/{k}_classes.png" for k in range(4)] + ["6_classes.png"]
    written = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*_classes.png")}
    assert set(written) == set(names)
    # the broken one mended: the others are done
    write_tar(tmp_path / "shards/a-1.tar", {"5.png": picture(1, LARGE), "6.png": picture(3, LARGE)})
    assert main([*plain, "--json", str(record)]) == 0
    assert [image["image"] for image in json.loads(record.read_text())["images"]] == [
        f"{tmp_path}/shards/a-1.tar: 5.png"
    ]
    assert {name: (out / name).read_bytes() for name in names} == written and (out / "5_classes.png").is_file()
