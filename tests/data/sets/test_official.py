"""Cityscapes, PASCAL VOC 2012 and SBD in the layouts they are distributed in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.data import VOC2012, Cityscapes, DataError, FolderDataset, Source
from dynroute.data.labels import CITYSCAPES
from dynroute.data.layout import find_layout, list_splits
from dynroute.data.voc import COLOURS
from dynroute.train import load_config
from dynroute.train.setup import open_source
from tests.support.official import (
    FRAME,
    IDS,
    SIZE,
    VOC_COLOURS,
    bands,
    photo,
    put,
    put_cityscapes,
    put_sbd,
    put_voc,
    voc_palette,
)  # fmt: skip

VOC_LIST = "VOC2012/ImageSets/Segmentation"


@pytest.mark.parametrize("kinds", [("labelIds",), ("labelTrainIds",), ("labelIds", "labelTrainIds")])
def test_cityscapes(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    put_cityscapes(tmp_path, kinds)
    for data in (Cityscapes(tmp_path, "train"), FolderDataset(tmp_path, "train", labels="cityscapes")):
        assert isinstance(data, Source) and data.layout == "cityscapes" and data.labelled and data.named
        assert len(data) == 3 and data.name(1) == f"bochum_{FRAME}_leftImg8bit"
        assert data.class_names == list(CITYSCAPES.values())
        for cached in (data, Cityscapes(tmp_path, "train", cache=False)):
            image, labels = cached.read(1)
            np.testing.assert_array_equal(image, photo(1))
            np.testing.assert_array_equal(labels, bands([0, 2, 18, 255]))
        mask = data.files(1)[1]
        assert mask is not None and mask.name == f"bochum_{FRAME}_gtFine_{kinds[0]}.png"
    assert find_layout(tmp_path) == "cityscapes" and list_splits(tmp_path) == ["train", "test", "val"]


def test_evaluation_reads_no_mask_of_training(tmp_path: Path) -> None:
    """Whose layout says how many classes there are."""
    put_cityscapes(tmp_path)
    for path in (tmp_path / "gtFine/train").rglob("*.png"):
        path.write_bytes(b"broken")
    config = load_config(None, [f"data.root={tmp_path}"]).data
    assert len(open_source(config, "val")) == 2
    with pytest.raises(DataError, match="not a readable image"):
        open_source(config, "train")


@pytest.mark.parametrize("masks", ["official", "train ids", "none"])
def test_cityscapes_test_has_no_labels(tmp_path: Path, masks: str, caplog: pytest.LogCaptureFixture) -> None:
    put_cityscapes(tmp_path, ("labelTrainIds",) if masks == "train ids" else ("labelIds",))
    if masks == "none":
        (tmp_path / "gtFine/test").rename(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        data = Cityscapes(tmp_path, "test")
    assert not data.labelled and len(data) == 2 and len(data.class_names) == 19
    assert (data.files(0)[1] is None) == (masks == "none")
    assert [record.getMessage() for record in caplog.records] == [
        f"dynroute: {tmp_path / 'gtFine/test'}: no labels, they are not public: there are predictions, but no scores"
    ]
    for source in (data, Cityscapes(tmp_path, "test", cache=False)):
        assert (source.read(0)[1] == 255).all() and source.read(0)[1].shape == SIZE


def test_cityscapes_coarse_where_there_are_no_fine_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put_cityscapes(tmp_path, splits=["train"])
    put_cityscapes(tmp_path, splits=["train_extra"], annotations="gtCoarse")
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        data = Cityscapes(tmp_path, "train_extra")
    np.testing.assert_array_equal(data.read(0)[1], bands([0, 2, 18, 255]))
    assert "the coarse labels" not in caplog.text
    put_cityscapes(tmp_path, splits=["val"], annotations="gtCoarse")
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert Cityscapes(tmp_path, "val").files(0)[1] == (
            tmp_path / f"gtCoarse/val/lindau/lindau_{FRAME}_gtCoarse_labelIds.png"
        )
    assert f"{tmp_path / 'gtFine/val'}: no such folder, the coarse labels in" in caplog.text


def test_cityscapes_train_ids_in_a_plain_folder(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.png", photo(0))
    put(tmp_path / "masks/train/a.png", bands([0, 18, 255]))
    data = FolderDataset(tmp_path, "train", labels="cityscapes_train_ids")
    assert data.class_names[18] == "bicycle" and data.layout == "folder"
    np.testing.assert_array_equal(data.read(0)[1], bands([0, 18, 255]))
    put(tmp_path / "masks/train/a.png", bands([0, 19]))
    with pytest.raises(DataError, match=r"a\.png: label 19 found, wanted train ids 0\.\.18 \(data\.labels: city"):
        FolderDataset(tmp_path, "train", labels="cityscapes_train_ids")


def line(make: Callable[[], object]) -> str:
    """The one line that refuses a data set."""
    with pytest.raises(DataError) as error:
        make()
    message = str(error.value)
    assert "\n" not in message
    return message


def test_cityscapes_errors_say_file_and_layout(tmp_path: Path) -> None:
    layout = f"wanted {tmp_path}/leftImg8bit/train/<city>/*_leftImg8bit.png and gtFine/train/<city>/*_gtFine_labelIds"
    assert line(lambda: Cityscapes(tmp_path, "train")).startswith(
        f"{tmp_path}/leftImg8bit/train: no such folder, {layout}"
    )
    put_cityscapes(tmp_path)
    (tmp_path / "gtFine").rename(tmp_path / "fine")
    assert line(lambda: FolderDataset(tmp_path, "train")).startswith(f"{tmp_path}/gtFine/train: no such folder, wanted")
    (tmp_path / "fine").rename(tmp_path / "gtFine")
    for city in ("aachen", "bochum", "zurich"):
        folder = tmp_path / f"gtFine/train/{city}"
        (folder / f"{city}_{FRAME}_gtFine_labelIds.png").unlink()
    message = line(lambda: Cityscapes(tmp_path, "train"))
    assert message.startswith(f"{tmp_path}/gtFine/train/aachen/aachen_{FRAME}_gtFine_labelIds.png: no such mask")
    for path in (tmp_path / "leftImg8bit/val").rglob("*.png"):
        path.unlink()
    assert line(lambda: Cityscapes(tmp_path, "val")).startswith(f"{tmp_path}/leftImg8bit/val: no image found, wanted")
    (tmp_path / "leftImg8bit").rename(tmp_path / "left")
    assert "leftImg8bit: no such folder" in line(lambda: list_splits(tmp_path))


def test_a_folder_of_no_layout_is_told_all_of_them(tmp_path: Path) -> None:
    message = line(lambda: FolderDataset(tmp_path, "train"))
    assert message.startswith(f"{tmp_path}/images/train: no such folder, wanted {tmp_path}/images/train/*.jpg and")
    assert "Cityscapes (leftImg8bit/, gtFine/)" in message and "PASCAL VOC 2012 (JPEGImages/, Seg" in message


def test_voc_colours() -> None:
    assert {label: tuple(map(int, COLOURS[label])) for label in VOC_COLOURS} == VOC_COLOURS
    assert len(np.unique(COLOURS, axis=0)) == 256


@pytest.mark.parametrize("below", ["", "VOC2012", ".."])
def test_voc(tmp_path: Path, below: str) -> None:
    root = put_voc(tmp_path / "VOCdevkit") / below
    assert find_layout(root) == "voc2012" and list_splits(root) == ["train", "val"]
    for split, count in (("train", 3), ("val", 2), ("trainval", 5)):
        data = VOC2012(root, split)
        assert isinstance(data, Source) and len(data) == count and data.layout == "voc2012" and data.labelled
        assert data.class_names[:2] == ["background", "aeroplane"] and data.class_names[20] == "tvmonitor"
    assert data.name(0) == IDS["train"][0]
    np.testing.assert_array_equal(data.read(0)[1], bands([0, 1, 15, 255]))
    assert data.read(0)[0].shape == (*SIZE, 3)


@pytest.mark.parametrize("kind", ["grey", "rgb", "rgba", "another order", "other colours"])
def test_voc_masks_in_other_forms(tmp_path: Path, kind: str) -> None:
    put_voc(tmp_path)
    mask, labels = tmp_path / f"VOC2012/SegmentationClass/{IDS['train'][0]}.png", bands([0, 1, 15, 255])
    if kind == "grey":
        put(mask, labels)
    elif kind in ("rgb", "rgba"):
        put(mask, np.asarray(Image.fromarray(COLOURS[labels]).convert(kind.upper())))
    elif kind == "another order":  # a program that saves the palette anew, such as Pillow's optimize=True
        put(mask, bands([3, 0, 2, 1]), [c for label in (1, 255, 15, 0) for c in VOC_COLOURS[label]])
    else:
        put(mask, labels, [200, 10, 10] * 256)
    np.testing.assert_array_equal(VOC2012(tmp_path, "train").read(0)[1], labels)


def test_voc_mask_in_colours_that_are_none(tmp_path: Path) -> None:
    put_voc(tmp_path)
    mask = tmp_path / f"VOC2012/SegmentationClass/{IDS['train'][0]}.png"
    put(mask, np.full((*SIZE, 3), (128, 0, 7), dtype=np.uint8))
    assert line(lambda: VOC2012(tmp_path, "train")).startswith(f"{mask}: colour (128, 0, 7) found, wanted class")
    put(mask, bands([0, 21]))
    assert f"{mask}: label 21 found, wanted 0..20" in line(lambda: VOC2012(tmp_path, "train"))


@pytest.mark.parametrize("form", ["ids", "paths"])
def test_voc_with_augmented_masks(tmp_path: Path, form: str) -> None:
    home = put_voc(tmp_path) / "VOC2012"
    names = (*IDS["train"], "2008_000001", "2009_000002")
    for name in names:
        put(home / f"SegmentationClassAug/{name}.png", bands([0, 5, 20]))
    text = "\n".join(n if form == "ids" else f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in names)
    (home / "ImageSets/Segmentation/train_aug.txt").write_text(text)
    data = VOC2012(tmp_path, "train_aug")
    assert [data.name(k) for k in range(5)] == list(names)
    # an id's mask is VOC's own where VOC has one
    np.testing.assert_array_equal(data.read(0)[1], bands([0, 1, 15, 255] if form == "ids" else [0, 5, 20]))
    np.testing.assert_array_equal(data.read(4)[1], bands([0, 5, 20]))
    assert list_splits(tmp_path) == ["train", "train_aug", "val"]


@pytest.mark.parametrize("place", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc_with_the_release_of_sbd(tmp_path: Path, place: str) -> None:
    put_voc(tmp_path / "VOCdevkit")
    put_sbd(tmp_path / place)
    data = VOC2012(tmp_path / "VOCdevkit", "train_aug")
    # those of VOC's validation are left out, those of its training have VOC's masks
    assert [data.name(k) for k in range(len(data))] == [*IDS["train"], "2008_000001", "2009_000002"]
    np.testing.assert_array_equal(data.read(0)[1], bands([0, 1, 15, 255]))
    np.testing.assert_array_equal(data.read(3)[1], bands([0, 5, 20]))
    assert len(VOC2012(tmp_path / "VOCdevkit", "val")) == 2


def test_sbd_alone(tmp_path: Path) -> None:
    home = put_sbd(tmp_path)
    for root in (home, home.parent, tmp_path):
        data = FolderDataset(root, "val")
        assert data.layout == "sbd" and [data.name(k) for k in range(2)] == ["2009_000002", IDS["train"][0]]
        np.testing.assert_array_equal(data.read(0)[1], bands([0, 5, 20]))
    assert list_splits(tmp_path) == ["train", "val"]
    assert line(lambda: FolderDataset(home, "test")) == (
        f"{home}/test.txt: no such file, wanted {home}/img/*.jpg, cls/*.mat and test.txt (SBD's release)"
    )


def test_broken_mat_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    home = put_sbd(tmp_path)
    mask = home / "cls/2008_000001.mat"
    whole = mask.read_bytes()
    for content in (b"", b"text", whole[:90], whole[:-20]):
        mask.write_bytes(content)
        assert line(lambda: FolderDataset(home, "train")).startswith(f"{mask}: wanted GTcls.Segmentation, as in SBD's")
    for wrong, words in (
        ({"GTinst": 1}, "wanted GTcls.Segmentation"),
        ({"GTcls": {"Boundaries": 1}}, "wanted GTcls.Segmentation"),
        ({"GTcls": {"Segmentation": bands([0, 1]).astype(float)}}, "is float64 [48, 64], wanted uint8 [H,W]"),
    ):
        savemat(mask, wrong)
        assert words in line(lambda: FolderDataset(home, "train"))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    mask.write_bytes(whole)
    with pytest.raises(ImportError, match=r"\.mat: scipy is wanted to read SBD's \.mat files: pip install 'dynr"):
        FolderDataset(home, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("JPEGImages", "{home}/JPEGImages: no such folder, wanted {home}/JPEGImages/*.jpg, SegmentationClass/*.pn"),
        ("SegmentationClass", "{home}/SegmentationClass: no such folder, wanted {home}/JPEGImages/*.jpg, Segm"),
        ("ImageSets/Segmentation/val.txt", "{home}/ImageSets/Segmentation/val.txt: no such file, wanted {home}/JPEGIm"),
        ("JPEGImages/2007_000042.jpg", "{home}/JPEGImages/2007_000042.jpg: no such image, wanted by {list}: line 2"),
        (
            "SegmentationClass/2007_000033.png",
            "{home}/SegmentationClass/2007_000033.png: no such mask (nor in SegmentationClass), wanted by {list}: li",
        ),
        ("\n", "{list}: empty, wanted an id to a line, or an image and its mask"),
        ("2007_000033 1\n", "{list}: line 1: '2007_000033 1', wanted an id, or an image and a mask (/JPEGIma"),
        ("2007_000033\n\n2007_000033\n", "{list}: line 3: 2007_000033 a second time, wanted each picture once"),
        ("/JPEGImages/2007_000033.jpg /Aug/x.png", "{home}/Aug/x.png: no such mask, wanted by {list}: line 1"),
        ("/Pictures/x.jpg /SegmentationClass/x.png", "{home}/Pictures/x.jpg: no such image, wanted by {list}: line 1"),
    ],
)
def test_voc_errors_say_file_and_layout(tmp_path: Path, change: str, message: str) -> None:
    home = put_voc(tmp_path) / "VOC2012"
    listed = home / "ImageSets/Segmentation/val.txt"
    if (home / change).exists():
        (home / change).rename(tmp_path / "elsewhere")
    else:
        listed.write_text(change)
    assert line(lambda: VOC2012(tmp_path, "val")).startswith(message.format(home=home, list=listed))


def test_voc_without_what_makes_train_aug(tmp_path: Path) -> None:
    put_voc(tmp_path)
    message = line(lambda: VOC2012(tmp_path, "train_aug"))
    assert message.startswith(f"{tmp_path / VOC_LIST}/train_aug.txt: no such file, wanted")
    assert message.endswith("; or SBD's benchmark_RELEASE/dataset beside it")
    assert line(lambda: VOC2012(tmp_path / "nowhere", "val")).startswith(
        f"{tmp_path}/nowhere/JPEGImages: no such folder, wanted {tmp_path}/nowhere/JPEGImages/*.jpg, SegmentationClass/"
    )


def test_voc_test_has_no_masks(tmp_path: Path) -> None:
    put_voc(tmp_path)
    (tmp_path / VOC_LIST / "test.txt").write_text("2008_000001\n2009_000002\n")
    data = VOC2012(tmp_path, "test")
    assert not data.labelled and data.files(1)[1] is None and (data.read(1)[1] == 255).all()
    assert list_splits(tmp_path) == ["train", "test", "val"]


def test_palette_of_masks_in_a_plain_folder_is_not_looked_at(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.png", photo(0))
    put(tmp_path / "masks/train/a.png", bands([0, 1, 2]), voc_palette()[3:6] + voc_palette()[:3] + [0] * 762)
    np.testing.assert_array_equal(FolderDataset(tmp_path, "train").read(0)[1], bands([0, 1, 2]))
