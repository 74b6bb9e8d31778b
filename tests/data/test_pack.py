"""A folder packed into shards is the same data set."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from dynroute.data import DataError, FolderDataset, ShardDataset
from dynroute.data.pack import pack
from tests.support.pictures import BANDS, exif, folders, write_pair


def folder(root: Path, samples: int = 9) -> FolderDataset:
    """Bands of the values 0, 127 and 254, which are classes 0, 1 and 2; one picture lies on its side."""
    for k in range(samples - 1):
        write_pair(root, BANDS * np.uint8(127), stem=f"p.{k}", shade=k)
    images, masks = folders(root)
    turned = np.ascontiguousarray(np.rot90(BANDS, 1))
    Image.fromarray(np.repeat(turned[..., None] * np.uint8(90), 3, axis=2)).save(images / "turned.JPG", exif=exif(6))
    Image.fromarray(turned * np.uint8(127)).save(masks / "turned.png", exif=exif(6))
    (root / "classes.txt").write_text("sky\nroad & path\ncar\n")
    return FolderDataset(root, "train", labels={127: 1, 254: 2})


@pytest.mark.parametrize("mixed", [True, False])
def test_the_same_data_set(tmp_path: Path, mixed: bool) -> None:
    source, seen = folder(tmp_path / "data"), []
    found = pack(source, tmp_path / "out", 6000, mixed, lambda done, total: seen.append((done, total)))
    assert seen == [(k, 9) for k in range(1, 10)]
    assert found.samples == [3, 3, 3] and [Path(path).name for path in found.shards] == [
        f"train-00000{k}.tar" for k in range(3)
    ]
    packed = ShardDataset(tmp_path / "out", "train")
    assert packed.class_names == ["sky", "road & path", "car"]
    names = {source.name(k).replace(".", "_"): k for k in range(9)}
    order = [names[packed.name(k)] for k in range(9)]
    assert sorted(order) == list(range(9)) and (order != list(range(9))) == mixed
    for k, index in enumerate(order):
        image, labels = packed.read(k)
        np.testing.assert_array_equal(image, source.read(index)[0])
        np.testing.assert_array_equal(labels, source.read(index)[1])
        assert set(np.unique(labels)) == {0, 1, 2}
        assert packed.files(k)[0].read_bytes() == source.files(index)[0].read_bytes()  # the image's own bytes
    assert {packed.files(k)[0].suffix for k in range(9)} == {".png", ".jpg"}


def test_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = folder(tmp_path / "data")
    for out in ("a", "b"):
        pack(source, tmp_path / out, 6000)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == 4


def test_webdataset_reads_them(tmp_path: Path) -> None:
    source = folder(tmp_path / "data")
    found = pack(source, tmp_path / "out", 10**9)
    samples = list(webdataset.WebDataset(found.shards, shardshuffle=False, empty_check=False))
    assert len(samples) == 9
    for sample in samples:
        kinds = sorted(key for key in sample if not key.startswith("__"))
        assert kinds in (["mask.png", "png"], ["jpg", "mask.png"])
        with Image.open(io.BytesIO(sample["mask.png"])) as mask:
            assert mask.mode == "L" and mask.size == (12, 6)
            np.testing.assert_array_equal(np.asarray(mask), BANDS)


def test_shards_can_be_packed_anew(tmp_path: Path) -> None:
    pack(folder(tmp_path / "data"), tmp_path / "small", 2000)
    small = ShardDataset(tmp_path / "small", "train")
    found = pack(small, tmp_path / "large", 10**9, mixed=False)
    large = ShardDataset(tmp_path / "large", "train")
    assert found.samples == [9] and [large.name(k) for k in range(9)] == [small.name(k) for k in range(9)]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("broken image", "p.3.png: broken image"),
        ("another size", "p.3.png: size 6x6"),
        ("one key", "p_3.png: its key 'p_3' is that of {data}/images/train/p.3.png, wanted names that differ"),
    ],
)
def test_nothing_stays_of_what_fails(tmp_path: Path, what: str, words: str) -> None:
    folder(tmp_path / "data")
    image, mask = (tmp_path / "data" / part / "train/p.3.png" for part in ("images", "masks"))
    if what == "broken image":
        image.write_bytes(image.read_bytes()[:-30])
    elif what == "another size":
        Image.fromarray(BANDS[:, :6].copy()).save(mask)
    else:
        write_pair(tmp_path / "data", BANDS, stem="p_3")
    source = FolderDataset(tmp_path / "data", "train", cache=False, labels={127: 1, 254: 2})
    with pytest.raises(DataError) as error:
        pack(source, tmp_path / "out", 2000)
    assert words.format(data=tmp_path / "data") in str(error.value)
    assert not list((tmp_path / "out").glob("*.tar")) and not list((tmp_path / "out").glob(".*"))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    source = folder(tmp_path / "data")
    pack(source, tmp_path / "out", 6000)
    with pytest.raises(DataError, match=r"out/train-000000\.tar: shards of the split 'train' are there already"):
        pack(source, tmp_path / "out", 6000)
    for path in (tmp_path / "out").glob("*.tar"):
        path.unlink()
    (tmp_path / "out/classes.txt").write_text("other\n")
    with pytest.raises(DataError, match=r"classes\.txt: names other classes than"):
        pack(source, tmp_path / "out", 6000)
    with pytest.raises(DataError, match=r"classes\.txt: wanted a folder, this is a file"):
        pack(source, tmp_path / "out/classes.txt", 6000)
