"""Shards as a data set: what a folder would give, in an order that is a function of the seed alone."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dynroute.data import Augmentation, DataError, FolderDataset, ShardDataset, Stream, batches, masks
from dynroute.data.sets.shards import open_dataset
from dynroute.data.source import Source
from tests.support.pictures import BANDS, write_bomb, write_pair
from tests.support.shards import picture, png, write_shards, write_tar

MASK = png(BANDS)


@pytest.mark.parametrize("keep", [True, False, None])
def test_reads_what_webdataset_wrote(tmp_path: Path, keep: bool | None) -> None:
    mask = BANDS.copy()
    mask[0] = 255
    data = ShardDataset(write_shards(tmp_path, mask=mask), "train", cache=keep)
    assert isinstance(data, Source) and len(data) == 7 and data.layout == "shards"
    assert data.class_names == ["class_0", "class_1", "class_2"] and data.root == tmp_path
    for k in range(7):
        image, labels = data.read(k)
        assert image.shape == (6, 12, 3) and image.dtype == np.uint8 and (image[..., 1] == k).all()
        assert labels.dtype == np.uint8 and data.name(k) == f"{k:06d}"
        np.testing.assert_array_equal(labels, mask)


def test_labels_names_and_classes_as_in_a_folder(tmp_path: Path) -> None:
    write_shards(tmp_path, mask=np.where(BANDS == 0, 0, 255).astype(np.uint8))
    with pytest.raises(
        DataError, match=r"train-000000\.tar: 000000\.mask\.png: values 0, 255 alone .*data\.labels: bin"
    ):
        ShardDataset(tmp_path, "train")
    np.testing.assert_array_equal(ShardDataset(tmp_path, "train", labels="binary").read(0)[1], (BANDS > 0))
    (tmp_path / "classes.txt").write_text("sky\nroad\n")
    assert ShardDataset(tmp_path, "train", labels={255: 1}).class_names == ["sky", "road"]
    with pytest.raises(DataError, match=r"classes\.txt: 2 classes named, but 3 wanted"):
        ShardDataset(tmp_path, "train", 3, labels={255: 1})


@pytest.mark.parametrize(
    ("member", "content", "words"),
    [
        ("1.png", b"text", "1.png: not a readable image (of no known format)"),
        ("1.png", picture(1)[:-30], "1.png: broken image"),
        ("1.mask.png", png(BANDS)[:-30], "1.mask.png: broken image"),
        ("1.mask.png", picture(1), "1.mask.png: mode RGB, a picture in colours"),
        ("1.mask.png", png(BANDS + np.uint8(2)), "1.mask.png: label 3 (and 4) found, wanted 0..2"),
        ("1.mask.png", png(BANDS[:, :6].copy()), "1.mask.png: size 6x6, but its image 1.png is 12x6"),
        ("1.mask.png", None, "1.mask.png: no such mask, wanted one for the image"),
        ("1.png", "bomb", "1.png: not a readable image (Image size (900000000 pixels)"),
    ],
)
def test_broken_members_are_named(tmp_path: Path, member: str, content: bytes | str | None, words: str) -> None:
    members = {f"{k}.{kind}": part for k in range(3) for kind, part in (("png", picture(k)), ("mask.png", MASK))}
    if content is None:
        del members[member]
    elif isinstance(content, str):
        write_bomb(tmp_path / "bomb.png")
        members[member] = (tmp_path / "bomb.png").read_bytes()
    else:
        members[member] = content
    path = write_tar(tmp_path / "data/train-000001.tar", members)
    with pytest.raises(DataError) as error:
        data = ShardDataset(tmp_path / "data", "train", num_classes=3)
        for k in range(3):
            data.read(k)
    assert str(error.value).startswith(f"{path}: {words}") and "\n" not in str(error.value)


def test_masks_are_counted_once_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path)
    counted: list[tuple[int, ...]] = []

    def count(values: np.ndarray, own=masks.count_values) -> dict[int, int]:  # type: ignore[no-untyped-def]
        counted.append(values.shape)
        return own(values)

    monkeypatch.setattr(masks, "count_values", count)
    first = ShardDataset(tmp_path, "train")
    assert len(counted) == 7
    assert ShardDataset(tmp_path, "train").class_names == first.class_names and len(counted) == 7
    write_shards(tmp_path, samples=2, mask=BANDS + np.uint8(1))  # another first shard
    with pytest.raises(DataError, match=r"train-000000\.tar: 000000\.mask\.png: label 3 found, wanted 0\.\.2"):
        ShardDataset(tmp_path, "train", num_classes=3)
    assert len(counted) == 9


def epochs(data: ShardDataset, seed: int = 0) -> list[int]:
    stream = Stream(data, lambda image, mask, _: (image, mask), seed)
    return [stream.index(position) for position in range(2 * len(data))]


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_an_epoch_mixes_windows_of_shards(tmp_path: Path, window: int) -> None:
    data = ShardDataset(write_shards(tmp_path, samples=22, of_each=4), "train", window=window)
    order = epochs(data)
    first, second = order[:22], order[22:]
    assert sorted(first) == sorted(second) == list(range(22)) and first != second
    assert order == epochs(data) and order != epochs(data, seed=1)
    shards = [k // 4 for k in first]
    at = 0
    while at < 22:  # each window is done with before the next begins
        own = set(list(dict.fromkeys(shards[at:]))[:window])
        size = sum(min(4, 22 - 4 * shard) for shard in own)
        assert set(shards[at : at + size]) == own
        at += size
    assert first != sorted(first, key=lambda k: (shards.index(k // 4), k))  # and mixed in itself


def stream(data: Source, **options: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    augment = Augmentation(crop=(8, 8), flip=True)
    return list(batches(data, augment, 4, 3, **{"start": 0, "stop": 5, "workers": 0, **options}))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("start", [0, 3])
def test_the_same_batches_whoever_reads(tmp_path: Path, workers: int, start: int) -> None:
    data = ShardDataset(write_shards(tmp_path, samples=9), "train", window=2)
    whole = stream(data)
    again = ShardDataset(tmp_path, "train", window=2, cache=True)
    for (images, labels), (own_images, own_labels) in zip(whole[start:], stream(again, start=start, workers=workers)):
        assert torch.equal(images, own_images) and torch.equal(labels, own_labels)
    for parts in (1, 2):
        shares = [stream(data, start=start, workers=workers, part=part, parts=parts) for part in range(parts)]
        for step, (images, labels) in enumerate(whole[start:]):
            assert torch.equal(images, torch.cat([share[step][0] for share in shares]))
            assert torch.equal(labels, torch.cat([share[step][1] for share in shares]))


def test_a_window_has_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    with pytest.raises(ValueError, match="window: wanted 1 or more shards, got 0"):
        ShardDataset(tmp_path, "train", window=0)


def test_what_is_there_is_opened(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards")
    write_pair(tmp_path / "folder")
    found = open_dataset(tmp_path / "shards", "train", window=3)
    assert isinstance(found, ShardDataset) and found.window == 3
    assert type(open_dataset(tmp_path / "folder", "train")) is FolderDataset
    with pytest.raises(DataError, match="folder: no shard of the split 'train'"):
        open_dataset(tmp_path / "folder", "train", kind="shards")
    assert len(FolderDataset(tmp_path / "shards", "train")) == 7


def test_pictures_are_upright(tmp_path: Path) -> None:
    upright = np.arange(6 * 12 * 3, dtype=np.uint8).reshape(6, 12, 3)
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    write_tar(tmp_path / "data/train-0.tar", {"1.png": (tmp_path / "turned.png").read_bytes(), "1.mask.png": MASK})
    np.testing.assert_array_equal(ShardDataset(tmp_path / "data", "train").read(0)[0], upright)


def test_pictures_of_many_channels(tmp_path: Path) -> None:
    bands = np.arange(6 * 12 * 4, dtype=np.uint16).reshape(6, 12, 4) * np.uint16(100)
    np.save(tmp_path / "a.npy", bands)
    tifffile.imwrite(tmp_path / "b.tif", bands, photometric="minisblack", planarconfig="contig")
    members = {f"{path.stem}{path.suffix}": path.read_bytes() for path in sorted(tmp_path.glob("[ab].*"))}
    write_tar(tmp_path / "data/train-0.tar", {**members, "a.mask.png": MASK, "b.mask.png": MASK})
    data = ShardDataset(tmp_path / "data", "train", channels=4, value_range=(0, 25500))
    for k in range(2):
        np.testing.assert_array_equal(data.read(k)[0], (bands // 100).clip(max=255))
    with pytest.raises(DataError, match=r"train-0\.tar: a\.npy: wanted 3 channels \(data\.channels\), got 4"):
        ShardDataset(tmp_path / "data", "train").read(0)


def test_what_is_passed_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "train-0.tar", {"1.png": picture(1), "1.mask.png": MASK, "._1.png": b"", "1.json": b"{}"})
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert len(ShardDataset(tmp_path, "train")) == 1
    assert f"{tmp_path}: hidden files passed over: 1 (such as ._1.png)" in caplog.text
    assert "passed over: 1 (such as 1.json)" in caplog.text
