"""Which tars are shards of what, which members are images and masks, and who reads which."""

from __future__ import annotations

import logging
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dynroute.data import DataError
from dynroute.data.layout import find_layout, list_splits, read_class_names
from dynroute.data.shards import find_shards, is_shards, iterate_shards, list_split, shard_images
from tests.support.pictures import BANDS, write_pair
from tests.support.ranks import together
from tests.support.shards import picture, png, write_shards, write_tar

MASK = png(BANDS)


@pytest.mark.parametrize(
    ("root", "split", "wanted"),
    [
        ("", "train", ["train-000000.tar", "train-000001.tar", "train_2.tar"]),
        ("", "val", ["val.tar", "val/a.tar", "val/b.tar"]),
        ("", "trainval", ["trainval-0.tar"]),
        ("", None, 7),
        ("val", None, ["val/a.tar", "val/b.tar"]),
        ("val.tar", None, ["val.tar"]),
        ("*/*.tar", "val", ["val/a.tar", "val/b.tar"]),
        ("{train,trainval}*.tar", "train", ["train-000000.tar", "train-000001.tar", "train_2.tar"]),
        ("train-{000000..000001}.tar", "train", ["train-000000.tar", "train-000001.tar"]),
    ],
)
def test_shards_of_a_split(tmp_path: Path, root: str, split: str | None, wanted: list[str] | int) -> None:
    names = ["train-000000", "train-000001", "train_2", "trainval-0", "val", "val/a", "val/b", "._train-000000"]
    for name in names:
        write_tar(tmp_path / f"{name}.tar", {"1.jpg": b""})
    found = [str(path.relative_to(tmp_path)) for path in find_shards(str(tmp_path / root), split)]
    assert len(found) == wanted if isinstance(wanted, int) else found == wanted
    assert is_shards(tmp_path / root)


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("", "no shard of the split 'test', wanted such as test-000000.tar; there are train-000000.tar and 0 more"),
        ("no-*.tar", "no shard of the split 'test', wanted such as test-000000.tar"),
        ("train-{000000..000001}.tar", "train-000001.tar: no such shard, which "),
        ("train-{0..1.tar", "braces that do not close"),
        ("test.tar", "test.tar: no such folder or shard, wanted such as train-000000.tar"),
    ],
)
def test_no_such_shards(tmp_path: Path, root: str, words: str) -> None:
    write_tar(tmp_path / "train-000000.tar", {"1.jpg": b""})
    with pytest.raises(DataError) as error:
        find_shards(tmp_path / root, "test")
    assert words in str(error.value) and str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_missing_numbers_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("train-000001", "train-000002", "train-000005", "val-000000", "val_2", "val_3", "val_5", "test"):
        write_tar(tmp_path / f"{name}.tar", {"1.jpg": b""})
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        find_shards(tmp_path, "test")
    lines = [record.getMessage() for record in caplog.records]
    end = "but there are others up to"
    assert lines == [
        f"dynroute: {tmp_path}/train-000003.tar: no such shard (and 1 more), {end} train-000005.tar",
        f"dynroute: {tmp_path}/val_4.tar: no such shard, {end} val_5.tar",
    ]


def test_braces_want_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "braceexpand", None)
    with pytest.raises(ImportError, match=r"braces want the package braceexpand: pip install 'dynroute\[shards\]'"):
        find_shards(tmp_path / "train-{0..1}.tar")


def test_what_is_taken_for_shards(tmp_path: Path) -> None:
    assert not is_shards(tmp_path) and not is_shards(tmp_path / "nothing")
    write_shards(tmp_path / "shards", "train", 2)
    write_shards(tmp_path / "split/val", "a", 2)
    assert is_shards(tmp_path / "shards") and is_shards(tmp_path / "split")
    assert find_layout(tmp_path / "shards") == "shards"
    (tmp_path / "shards/photo.jpg").write_bytes(b"")  # a folder of images that has some tar in it
    assert not is_shards(tmp_path / "shards") and not is_shards(tmp_path)
    write_pair(tmp_path / "split")
    assert find_layout(tmp_path / "split") == "folder"


@pytest.mark.parametrize("pattern", ["", "*.tar", "{train,val,test}-*.tar", "train-{000000..000000}.tar"])
def test_splits_and_class_names_of_a_pattern(tmp_path: Path, pattern: str) -> None:
    for split in ("val", "train", "test"):
        write_shards(tmp_path, split, 1)
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    splits = ["train"] if "0000" in pattern else ["train", "test", "val"]
    assert list_splits(tmp_path / pattern) == splits
    assert read_class_names(tmp_path / pattern) == ["sky", "road", "car"]


def test_splits_in_folders(tmp_path: Path) -> None:
    for split in ("val", "train"):
        write_shards(tmp_path / split, "part", 1)
    assert list_splits(tmp_path) == ["train", "val"]


@pytest.mark.parametrize(
    "members",
    [
        {"1.jpg": "image", "1.png": "mask"},
        {"1.png": "image", "1.mask.png": "mask"},
        {"1.JPG": "image", "1.SEG.PNG": "mask"},
        {"1.image.webp": "image", "1.label.tif": "mask"},
        {"a/1.tif": "image", "a/1.png": "mask", "a/1.json": "", "a/1.cls": ""},
        {"1.mask.png": "mask", "1.jpg": "image", "1.depth.png": ""},
        {"./1.jpg": "image", "._1.jpg": "hidden", "./1.png": "mask", "Thumbs.db": "hidden"},
    ],
)
def test_images_and_masks_by_their_names(tmp_path: Path, members: dict[str, str]) -> None:
    write_tar(tmp_path / "train-0.tar", dict.fromkeys(members, b"x"))
    found = list_split(tmp_path, "train")
    by_kind = {
        kind: [name.removeprefix("./") for name, own in members.items() if own == kind]
        for kind in ("image", "mask", "", "hidden")
    }
    [(image, mask)] = found.pairs
    assert [image.entry] == by_kind["image"] and [mask.entry] == by_kind["mask"]  # type: ignore[union-attr]
    assert [str(member) for member in found.others] == [f"{tmp_path}/train-0.tar: {name}" for name in by_kind[""]]
    assert [member.name for member in found.hidden] == by_kind["hidden"] and found.faults == []


def test_order_is_that_of_the_tars(tmp_path: Path) -> None:
    """Masks need not lie beside their images."""
    write_tar(tmp_path / "train-1.tar", {"3.jpg": b"", "3.png": b""})
    write_tar(tmp_path / "train-0.tar", {"2.jpg": b"", "1.jpg": b"", "1.png": b"", "2.png": b""})
    assert [str(image.stem) for image, _ in list_split(tmp_path, "train").pairs] == ["2", "1", "3"]


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"1.jpg": b""}, {}, "0.tar: 1.mask.png: no such mask, wanted one for the image {root}/train-0.tar: 1.jpg"),
        ({"1.jpg": b""}, {"1.mask.png": b""}, "0.tar: 1.mask.png: no such mask"),
        ({"1.jpg": b"", "1.webp": b"", "1.mask.png": b""}, {}, "0.tar: 1.webp: two images share the stem of 1.jpg"),
        ({"1.jpg": b"", "1.seg.png": b"", "1.mask.png": b""}, {}, "0.tar: 1.mask.png: two masks for the image"),
        (
            {"1.jpg": b"", "1.png": b""},
            {"1.jpg": b"", "1.png": b""},
            "1.tar: 1.jpg: {root}/train-0.tar: 1.jpg has the same key, wanted a key of its own for each sample",
        ),
    ],
)
def test_faults_of_pairs(tmp_path: Path, first: dict[str, bytes], second: dict[str, bytes], words: str) -> None:
    for k, members in enumerate((first, {**second, "9.jpg": b"", "9.png": b""})):
        write_tar(tmp_path / f"train-{k}.tar", members)
    found = list_split(tmp_path, "train")
    assert found.faults[0].startswith(f"{tmp_path}/train-{words.format(root=tmp_path)}") and len(found.faults) == 1


def test_broken_tars_and_links_are_faults(tmp_path: Path) -> None:
    write_shards(tmp_path, samples=6)
    broken = tmp_path / "train-000001.tar"
    broken.write_bytes(broken.read_bytes()[:1000])
    with tarfile.open(tmp_path / "train-000002.tar", "a") as tar:
        for name in ("7.jpg", "8.txt"):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, "000004.png"
            tar.addfile(info)
    found = list_split(tmp_path, "train")
    assert len(found.pairs) == 4 and len(found.faults) == 2
    assert found.faults[0].startswith(f"{broken}: ")
    assert found.faults[1] == f"{tmp_path}/train-000002.tar: 7.jpg: a link, wanted the file itself"
    with pytest.raises(DataError, match=r"train-000001\.tar: "):
        shard_images(tmp_path)
    for path in tmp_path.glob("*.tar"):
        path.write_bytes(b"hello" * 300)
    with pytest.raises(DataError, match=r"train-000000\.tar: not a readable tar"):
        list_split(tmp_path, "train")


def test_no_image_at_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.json": b"", "2.mask.png": b""})
    for look in (lambda: list_split(tmp_path, "train"), lambda: shard_images(tmp_path)):
        with pytest.raises(DataError, match=r"no image in these shards, wanted members such as KEY\.jpg"):
            look()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 20])
def test_processes_share_all_images(tmp_path: Path, size: int) -> None:
    for split, samples in (("train", 7), ("val", 5)):
        write_shards(tmp_path, split, samples, of_each=3, first=len(split) * 20)
    parts = [[str(member) for member in shard_images(tmp_path, rank, size)] for rank in range(size)]
    everything = [member for part in parts for member in part]
    assert sorted(everything) == sorted(str(member) for member in shard_images(tmp_path))
    assert len(set(everything)) == 12
    tars = [{member.partition(": ")[0] for member in part} for part in parts]
    if size <= 5:  # as many as there are shards: whole ones
        assert sum(map(len, tars)) == 5
    assert max(map(len, parts)) - min(map(len, parts)) <= (3 if size <= 5 else 1)
    assert all(part == sorted(part) for part in parts)


def _keys(rank: int, size: int, root: str) -> list[tuple[str, int]]:
    return [(key, int(image[0, 0, 1])) for key, image in iterate_shards(root, rank, size)]


def test_two_processes_iterate_shards(tmp_path: Path) -> None:
    write_shards(tmp_path / "data", samples=7, of_each=2)
    first, second = together(_keys, 2, tmp_path / "ranks", str(tmp_path / "data"))
    assert not set(first) & set(second) and len(first) in (3, 4)
    assert sorted(first + second) == [(f"{k:06d}", k) for k in range(7)]


def test_what_is_done_is_not_read_and_what_is_broken_is_told(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", {"1.png": picture(1), "2.png": b"broken", "3.png": picture(3)[:50], "4.png": picture(4)}
    )
    told: list[tuple[str, str]] = []
    found = iterate_shards(tmp_path, done={"4", "2"}.__contains__, broken=lambda key, e: told.append((key, str(e))))
    assert [(key, image.shape, image.dtype) for key, image in found] == [("1", (6, 12, 3), np.uint8)]
    [(key, line)] = told
    assert key == "3" and line.startswith(f"{tmp_path}/a.tar: 3.png: broken image (")
    with pytest.raises(DataError, match=r"a\.tar: 2\.png: not a readable image \(of no known format\)"):
        list(iterate_shards(tmp_path))


def test_masks_are_no_images_to_iterate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(
        tmp_path / "a.tar", {"1.jpg": b"", "1.png": b"", "2.png": b"", "._1.jpg": b"", "b/3.png": b"", "4.txt": b""}
    )
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert [member.key for member in shard_images(tmp_path)] == ["1", "2", "b/3"]
    assert "hidden files passed over: 1 (such as ._1.jpg)" in caplog.text
    assert "passed over: 1 (such as 4.txt)" in caplog.text
    write_tar(tmp_path / "b.tar", {"2.jpg": b""})
    with pytest.raises(DataError, match=r"b\.tar: 2\.jpg: .*a\.tar: 2\.png has the same key, wanted a key of its own"):
        shard_images(tmp_path)
