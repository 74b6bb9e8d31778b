"""A whole data set is read before a training does, past whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.data import DataError
from dynroute.data.check import check
from dynroute.data.layout import list_splits
from tests.support.pictures import BANDS, write_bomb, write_pair


def test_a_whole_data_set_has_no_faults(tmp_path: Path) -> None:
    write_pair(tmp_path, stem="a")
    larger = np.repeat(BANDS, 2, axis=0)
    larger[0] = 255
    write_pair(tmp_path, larger, stem="b", shade=1)
    write_pair(tmp_path, BANDS[:, :8].copy(), split="val")
    seen: list[tuple[int, int]] = []
    found = check(tmp_path, ["train", "val"], each=lambda done, total: seen.append((done, total)))
    assert seen == [(k, 6) for k in range(1, 7)]
    train, val = found.splits
    assert found.faults == [] and found.duplicates == [] and train.said == val.said == []
    assert (train.images, train.pairs, train.sizes) == (2, 2, {"12x6": 1, "12x12": 1})
    assert train.pixels == {"class_0": 24 + 44, "class_1": 24 + 44, "class_2": 24 + 44} and train.ignored == 12
    assert val.pixels == {"class_0": 24, "class_1": 24, "class_2": 0} and val.sizes == {"8x6": 1}
    assert found.to_json()["splits"][0]["outside"] == {}


def test_everything_wrong_is_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    for shade, stem in enumerate("abcdefgh"):
        write_pair(tmp_path, stem=stem, shade=shade)
    images, masks = tmp_path / "images/train", tmp_path / "masks/train"
    write_bomb(images / "a.png")
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:60])
    Image.fromarray(BANDS).convert("RGB").save(masks / "c.png")
    Image.fromarray(BANDS[:, :6].copy()).save(masks / "d.png")
    Image.fromarray(BANDS + np.uint8(2)).save(masks / "e.png")
    (masks / "f.png").unlink()
    (images / "g.png").unlink()
    (images / "._h.png").write_bytes(b"\0")
    write_pair(tmp_path, BANDS, stem="other_name", split="val", shade=7)  # the bytes of h
    found = check(tmp_path, ["train", "val"])
    train, val = found.splits
    assert (train.images, train.pairs) == (7, 6)
    assert sorted(Path(path).name for path in train.unreadable) == ["a.png", "b.png", "c.png"]
    assert train.masks_without_image == [str(masks / "g.png")] and train.hidden == [str(images / "._h.png")]
    assert train.outside == {3: 24, 4: 24}
    assert len(train.refused) == 3
    for line, words in zip(train.refused, ("f.png: no such mask", "e.png: label 3 (and 4) found", "d.png: size 6x6")):
        assert f"{masks}/{words}" in line and "\n" not in line
    assert len(found.faults) == 6 and val.refused == []
    assert found.duplicates == [(str(images / "h.png"), str(tmp_path / "images/val/other_name.png"))]


def test_labels_mean_what_they_mean_in_training(tmp_path: Path) -> None:
    write_pair(tmp_path, np.where(BANDS == 0, 0, 255).astype(np.uint8))
    plain = check(tmp_path, ["train"])
    assert len(plain.faults) == 1 and "data.labels: binary" in plain.faults[0]
    binary = check(tmp_path, ["train"], "binary")
    assert binary.faults == [] and binary.splits[0].pixels == {"class_0": 24, "class_1": 48}
    assert check(tmp_path, ["train"], {255: 1}).splits[0].pixels == binary.splits[0].pixels
    assert check(tmp_path, ["train"], None, 0).faults


def test_splits_begin_with_train(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images: no such folder"):
        list_splits(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match="no split in it"):
        list_splits(tmp_path)
    for split in ("val", "test", "train"):
        write_pair(tmp_path, split=split)
    assert list_splits(tmp_path) == ["train", "test", "val"]
