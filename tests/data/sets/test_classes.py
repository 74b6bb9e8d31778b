"""Folders of classes: which image is of which class, and what is said when something is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.data import DataError, ImageClasses
from dynroute.data.check_classes import check_classes
from dynroute.data.sets.classes import class_splits, is_classes
from tests.support.pictures import write_bomb, write_pair

COUNTS = {"n01": 2, "n02": 1, "n03": 3}


def make(root: Path, counts: dict[str, int] = COUNTS, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Images of 5x4 whose red is the place of their class, whose green is their number and whose blue their split."""
    for number, split in enumerate(splits):
        for place, (name, count) in enumerate(counts.items()):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                image = np.full((4, 5, 3), (place, k, number), dtype=np.uint8)
                Image.fromarray(image).save(root / split / name / f"{name}_{k}.png")
    return root


def test_reads_images_with_their_class(tmp_path: Path) -> None:
    data = ImageClasses(make(tmp_path), "val")
    assert len(data) == 6 and data.class_names == ["n01", "n02", "n03"] and data.class_counts == [2, 1, 3]
    assert [data.label(k) for k in range(6)] == [0, 0, 1, 2, 2, 2]
    for k in range(6):
        image, label = data.read(k)
        assert image.shape == (4, 5, 3) and image.dtype == np.uint8 and type(label) is int
        assert label == data.label(k) == image[0, 0, 0] and image[0, 0, 2] == 1
    assert data.name(5) == "n03/n03_2" and data.file(5) == tmp_path / "val/n03/n03_2.png"
    with pytest.raises(IndexError):
        data.label(6)


@pytest.mark.parametrize(
    ("lines", "names", "labels"),
    [
        ("n03\nn01\nn02\n", ["n03", "n01", "n02"], [0, 0, 0, 1, 1, 2]),
        (
            "n01 tench, Tinca\nn02 crane\nn03 crane\n",
            ["tench, Tinca", "crane (n02)", "crane (n03)"],
            [0, 0, 1, 2, 2, 2],
        ),
        ("n01\nn02\nn02b\nn03\n", ["n01", "n02", "n02b", "n03"], [0, 0, 1, 3, 3, 3]),
    ],
)
def test_classes_in_the_order_of_a_file(tmp_path: Path, lines: str, names: list[str], labels: list[int]) -> None:
    (make(tmp_path) / "classes.txt").write_text(lines)
    data = ImageClasses(tmp_path, "train")
    assert data.class_names == names and [data.label(k) for k in range(6)] == labels


def test_a_folder_with_a_space_in_its_name(tmp_path: Path) -> None:
    make(tmp_path, {"fire truck": 1, "fire": 1})
    assert ImageClasses(tmp_path, "train").class_names == ["fire", "fire truck"]
    (tmp_path / "classes.txt").write_text("fire truck\nfire\n")
    data = ImageClasses(tmp_path, "train")
    assert data.class_names == ["fire truck", "fire"] and data.read(0)[0][0, 0, 0] == 0


def test_empty_classes_and_what_is_passed_over_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path)
    for k in range(3):
        (tmp_path / f"val/n03/n03_{k}.png").unlink()
    (tmp_path / "val/n02/._n02_0.png").write_bytes(b"")
    (tmp_path / "val/n02/notes.txt").write_text("")
    (tmp_path / "val/list.csv").write_text("")
    (tmp_path / "val/.cache").mkdir()
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        data = ImageClasses(tmp_path, "val")
    assert data.class_counts == [2, 1, 0] and [data.label(k) for k in range(3)] == [0, 0, 1]
    assert f"{tmp_path / 'val'}: 1 of 3 classes have no image here: n03" in caplog.text
    assert "hidden files passed over: 2 (such as .cache)" in caplog.text
    assert "passed over: 2 (such as list.csv)" in caplog.text


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no val", "{root}/val: no such folder, wanted {root}/val/<class>/*.jpg, and train/<class>/"),
        ("no train", "{root}/train: no such folder"),
        ("strange", "{root}/val/n04: no class of {root}/train (and 1 more), wanted the folders of {root}/train alone"),
        ("loose", "{root}/val/1.png: an image in no class's folder, wanted {root}/val/<class>/1.png"),
        ("flat", "{root}/val: no folder of a class in it, wanted {root}/val/<class>/*.jpg"),
        ("no image", "{root}/val: no image in its classes' folders, wanted files ending in .jpg"),
        (
            "unnamed",
            "{root}/classes.txt: no line for the folder {root}/train/n02 (and 1 more), wanted one for each class",
        ),
        ("twice", "{root}/classes.txt: the folder 'n01' twice, wanted a line for each class"),
    ],
)
def test_errors_name_the_folder(tmp_path: Path, what: str, words: str) -> None:
    make(tmp_path)
    if what in ("no val", "no train"):
        (tmp_path / what.split()[1]).rename(tmp_path / "other")
    elif what == "strange":
        for name in ("n04", "n05"):
            (tmp_path / "val" / name).mkdir()
    elif what == "loose":
        Image.new("RGB", (4, 4)).save(tmp_path / "val/1.png")
    elif what == "flat":
        (tmp_path / "val").rename(tmp_path / "other")
        (tmp_path / "val").mkdir()
    elif what == "no image":
        for path in (tmp_path / "val").glob("*/*.png"):
            path.unlink()
    else:
        (tmp_path / "classes.txt").write_text("n01 a\n" if what == "unnamed" else "n01 a\nn01 b\n")
    with pytest.raises(DataError) as error:
        ImageClasses(tmp_path, "val")
    assert str(error.value).startswith(words.format(root=tmp_path)) and "\n" not in str(error.value)


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    write_bomb(make(tmp_path) / "train/n01/n01_1.png")
    with pytest.raises(DataError, match=r"train/n01/n01_1\.png: not a readable image \(Image size"):
        ImageClasses(tmp_path, "train").read(1)


def test_which_folders_have_classes(tmp_path: Path) -> None:
    assert not is_classes(tmp_path)
    assert is_classes(make(tmp_path / "classes", splits=("val", "train", "test")))
    assert class_splits(tmp_path / "classes") == ["train", "test", "val"]
    write_pair(tmp_path / "masks")
    assert not is_classes(tmp_path / "masks")
    (tmp_path / "empty/train/n01").mkdir(parents=True)
    assert not is_classes(tmp_path / "empty")


def test_a_check_counts_and_goes_on(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "train/n01/n01_1.png").write_text("text")
    (tmp_path / "train/n02/again.png").write_bytes((tmp_path / "train/n01/n01_0.png").read_bytes())
    (tmp_path / "val/n03/again.png").write_bytes((tmp_path / "train/n03/n03_0.png").read_bytes())
    found = check_classes(tmp_path, ["train", "val"])
    train, val = found.splits
    assert train.counts == {"n01": 2, "n02": 2, "n03": 3} and train.images == 7 and train.sizes == {"5x4": 6}
    assert val.counts == {"n01": 2, "n02": 1, "n03": 4} and val.unreadable == {} and val.refused == []
    [(path, line)] = train.unreadable.items()
    assert path == str(tmp_path / "train/n01/n01_1.png") and line.startswith(f"{path}: not a readable image")
    assert found.duplicates == [(str(tmp_path / "train/n03/n03_0.png"), str(tmp_path / "val/n03/again.png"))]
    assert found.two_classes == [(str(tmp_path / "train/n01/n01_0.png"), str(tmp_path / "train/n02/again.png"))]
    assert found.faults == [line] and found.to_json()["faults"] == [line]
    (tmp_path / "val/n04").mkdir()
    refused = check_classes(tmp_path, ["train", "val"]).splits[1].refused
    assert len(refused) == 1 and refused[0].startswith(f"{tmp_path / 'val/n04'}: no class of")
