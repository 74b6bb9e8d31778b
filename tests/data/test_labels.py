"""What values in masks mean; what cannot be meant is refused, what may not be is said once, both with the option."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from dynroute.data import DataError, FolderDataset
from dynroute.data.labels import CITYSCAPES, SCHEMES, Labels
from dynroute.train import ConfigError, load_config
from dynroute.train.setup import open_source
from tests.support.pictures import BANDS, write_pair


def put(root: Path, values: list[int], names: str | None = None, split: str = "train") -> Path:
    """A data set of one mask that holds these values in equal parts; returns its root."""
    write_pair(root, np.tile(np.array(values, dtype=np.uint8), (4, 2)), split=split)
    if names is not None:
        (root / "classes.txt").write_text("\n".join(names.split()))
    return root


def refused(root: Path, **options: object) -> str:
    """The one line that refuses the data set, which names the mask."""
    with pytest.raises(DataError) as error:
        FolderDataset(root, "train", **options)  # type: ignore[arg-type]
    message = str(error.value)
    assert message.startswith(f"{root / 'masks/train/a.png'}: ") and "\n" not in message
    return message


def said(root: Path, caplog: pytest.LogCaptureFixture, **options: object) -> list[str]:
    """What is said when the data set is opened, and opened again."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        for _ in range(2):
            FolderDataset(root, "train", **options)  # type: ignore[arg-type]
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("names", [None, "road other"])
def test_0_and_255_alone(tmp_path: Path, names: str | None, caplog: pytest.LogCaptureFixture) -> None:
    root = put(tmp_path, [0, 255], names)
    message = refused(root)
    assert "values 0, 255 alone" in message and "data.labels: binary" in message and "{255: 255}" in message
    assert "values 0, 255 alone" in refused(root, num_classes=2)  # as in an evaluation
    assert said(root, caplog, labels="binary") == []
    data = FolderDataset(root, "train", labels="binary")
    np.testing.assert_array_equal(np.unique(data.read(0)[1]), [0, 1])
    assert len(data.class_names) == 2
    mapped = FolderDataset(root, "train", labels={255: 1}).read(0)[1]
    np.testing.assert_array_equal(mapped, data.read(0)[1])
    # meant: 255 is ignored; a named class that never occurs is said
    lines = said(root, caplog, labels={255: 255})
    assert len(lines) == (names is not None)
    assert all("1 of 2 classes occur in no mask: other (1); values found: 0, 255" in line for line in lines)


def test_binary_takes_nothing_else(tmp_path: Path) -> None:
    assert "label 127 found, wanted 0 or 255 (data.labels: binary)" in refused(
        put(tmp_path, [0, 127, 255]), labels="binary"
    )


def test_sparse_labels_without_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    message = refused(put(tmp_path, [0, 127, 254]))
    assert (
        "a network of 255 classes" in message and "data.labels maps values, such as {0: 0, 127: 1, 254: 2}" in message
    )
    assert said(tmp_path, caplog, labels={0: 0, 127: 1, 254: 2}) == []
    data = FolderDataset(tmp_path, "train", labels={0: 0, 127: 1, 254: 2})
    np.testing.assert_array_equal(np.unique(data.read(0)[1]), [0, 1, 2])
    assert len(data.class_names) == 3


def test_a_gap_without_names_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = said(put(tmp_path, [0, 1, 2, 4]), caplog)
    assert len(lines) == 1 and f"{tmp_path / 'masks/train/a.png'}: labels 0, 1, 2, 4 occur" in lines[0]
    assert "data.labels" in lines[0] and "5 classes" in lines[0]


def test_counted_from_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = put(tmp_path, [1, 2, 3])
    assert "data.labels: reduce_zero_label" in said(root, caplog)[0]
    put(tmp_path, [1, 2, 3], "sky road car")
    message = refused(root)
    assert "label 3 found, wanted 0..2 or 255 (ignored)" in message and "data.labels: reduce_zero_label" in message
    assert said(root, caplog, labels="reduce_zero_label") == []
    put(tmp_path, [0, 1, 3, 255])
    mask = FolderDataset(root, "train", labels="reduce_zero_label").read(0)[1]
    np.testing.assert_array_equal(mask[0, :4], [255, 0, 2, 255])


def test_a_label_outside_the_classes_names_the_way_on(tmp_path: Path) -> None:
    root = put(tmp_path, [0, 1, 7], "sky road car")
    assert "label 7 found, wanted 0..2 or 255 (ignored); data.labels maps" in refused(root)
    assert "{7: 255}" in refused(root)
    mask = FolderDataset(root, "train", labels={7: 255}).read(0)[1]
    np.testing.assert_array_equal(mask[0, :3], [0, 1, 255])
    mask = FolderDataset(root, "train", ignore=7).read(0)[1]
    np.testing.assert_array_equal(mask[0, :3], [0, 1, 255])


def test_255_is_no_class_where_another_value_is_ignored(tmp_path: Path) -> None:
    assert "label 255 found" in refused(put(tmp_path, [0, 1, 255]), ignore=0)


def test_a_named_class_that_never_occurs_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = said(put(tmp_path, [0, 1, 2], "sky road car tree"), caplog)
    assert len(lines) == 1
    assert "1 of 4 classes occur in no mask: tree (3); values found: 0, 1, 2; data.labels" in lines[0]
    # a validation split need not show them all
    put(tmp_path, [0, 1], split="val")
    caplog.clear()
    FolderDataset(tmp_path, "val", 4)
    assert caplog.records == []


def test_masks_that_are_all_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path)
    for stem in ("b", "c"):
        write_pair(tmp_path, np.full((6, 12), 255, dtype=np.uint8), stem=stem)
    lines = said(tmp_path, caplog)
    assert len(lines) == 1
    assert f"{tmp_path / 'masks/train/b.png'}: all of this mask is ignored (value 255); 2 such masks" in lines[0]
    write_pair(tmp_path, np.full((6, 12), 255, dtype=np.uint8))
    with pytest.raises(DataError, match=r"masks/train: every mask is empty \(all 255, ignored\)"):
        FolderDataset(tmp_path, "train")


def test_cityscapes_ids_in_a_plain_folder(tmp_path: Path) -> None:
    root = put(tmp_path, [0, 7, 11, 33], " ".join(name.replace(" ", "_") for name in CITYSCAPES.values()))
    assert "label 33 found, wanted 0..18" in refused(root) and "data.labels: cityscapes" in refused(root)
    mask = FolderDataset(root, "train", labels="cityscapes").read(0)[1]
    np.testing.assert_array_equal(mask[0, :4], [255, 0, 2, 18])
    put(tmp_path, [0, 7, 11, 40])
    assert "label 40 found, wanted label ids 0..33" in refused(root, labels="cityscapes")


def test_cityscapes_map_is_the_official_one() -> None:
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    labels = Labels("cityscapes")
    assert [labels.index(value) for value in ids] == list(range(19))
    assert {labels.index(value) for value in range(-1, 34) if value not in ids} == {255}
    assert labels.names is not None and (labels.names[13], labels.names[16]) == ("car", "train")


def test_schemes_agree_with_the_names(tmp_path: Path) -> None:
    root = put(tmp_path, [0, 255], "a b c")
    with pytest.raises(DataError, match=r"classes\.txt: 3 classes named, but labels 'binary' has 2"):
        FolderDataset(root, "train", labels="binary")
    with pytest.raises(DataError, match=f"wanted a map or one of {', '.join(SCHEMES)}, got 'other'"):
        FolderDataset(root, "train", labels="other")
    with pytest.raises(DataError, match=r"wanted classes 0\.\.254, or 255 for what is ignored, got 3: 300"):
        FolderDataset(root, "train", labels={3: 300})


def test_configuration_carries_both_options(tmp_path: Path) -> None:
    put(tmp_path / "data", [0, 9, 255])
    put(tmp_path / "data", [9, 255], split="val")
    base = [f"data.root={tmp_path / 'data'}"]
    config = load_config("camvid", [*base, "data.labels={255: 1}", "data.ignore=9"])
    assert (config.data.labels, config.data.ignore) == ({255: 1}, 9)
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    for part, expected in (("train", [0, 255, 1]), ("val", [255, 1])):
        source = open_source(config.data, part)
        np.testing.assert_array_equal(source.read(0)[1][0, : len(expected)], expected)
        assert len(source.class_names) == 2
    assert load_config("camvid", [*base, "data.labels=cityscapes"]).data.labels == "cityscapes"
    for override, message in (
        ("data.labels=city", f"data.labels: wanted one of {', '.join(SCHEMES)}, got 'city'"),
        ("data.labels={a: 1}", "data.labels: wanted integer, got 'a'"),
        ("data.labels={3: x}", r"data.labels\[3\]: wanted integer, got 'x'"),
        ("data.labels={3: 256}", "data.labels: wanted classes 0..254, or 255 for what is ignored"),
        ("data.ignore=-2", "data.ignore: wanted a value of masks, -1..65535, got -2"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config("camvid", [*base, override])


def test_what_is_read_is_eight_bits_whatever_is_mapped() -> None:
    labels = Labels({300: 2})
    found = labels(Path("m.png"), np.array([[0, 300], [1, 255]], dtype=np.int32), 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[0, 2], [1, 255]])
    plain = labels(Path("m.png"), BANDS, 3)
    assert plain.dtype == np.uint8 and (plain == BANDS).all()
