"""Folder data sets: what is read, and what is said when something is wrong."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.data import DataError, FolderDataset, masks
from dynroute.data.sets import folder
from tests.support.pictures import BANDS, write_pair


def make(root: Path, masks: list[np.ndarray] | None = None, names: str | None = None) -> Path:
    """A data set of one split, `train`, with the images' pixels equal to their index."""
    masks = masks if masks is not None else [np.full((6, 8), k, dtype=np.uint8) for k in range(3)]
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True)
    for k, mask in enumerate(masks):
        Image.fromarray(np.full((6, 8, 3), k, dtype=np.uint8)).save(root / "images/train" / f"s{k}.png")
        Image.fromarray(mask).save(root / "masks/train" / f"s{k}.png")
    if names is not None:
        (root / "classes.txt").write_text(names)
    return root


@pytest.mark.parametrize("cache", [True, False])
def test_reads_pairs_in_order(tmp_path: Path, cache: bool) -> None:
    data = FolderDataset(make(tmp_path), "train", cache=cache)
    assert len(data) == 3
    assert data.class_names == ["class_0", "class_1", "class_2"]
    for k in range(3):
        image, mask = data.read(k)
        assert image.shape == (6, 8, 3) and image.dtype == np.uint8 and (image == k).all()
        assert mask.shape == (6, 8) and mask.dtype == np.uint8 and (mask == k).all()
        assert data.name(k) == f"s{k}"


def test_class_names_come_from_file(tmp_path: Path) -> None:
    assert FolderDataset(make(tmp_path, names="sky\nroad\ncar\ntree\n"), "train").class_names[3] == "tree"


def test_ignored_label_is_no_class(tmp_path: Path) -> None:
    mask = np.full((6, 8), 255, dtype=np.uint8)
    mask[0, :5] = range(5)
    assert len(FolderDataset(make(tmp_path, [mask]), "train").class_names) == 5


def test_palette_mask_holds_indices(tmp_path: Path) -> None:
    make(tmp_path)
    picture = Image.fromarray(np.full((6, 8), 2, dtype=np.uint8), mode="P")
    picture.putpalette([200] * 768)
    picture.save(tmp_path / "masks/train/s0.png")
    assert (FolderDataset(tmp_path, "train").read(0)[1] == 2).all()


def breaks(root: Path, what: str) -> None:
    if what == "no images folder":
        (root / "images").rename(root / "pictures")
    elif what == "no mask":
        (root / "masks/train/s1.png").unlink()
    elif what == "broken image":
        (root / "images/train/s1.png").write_bytes((root / "images/train/s1.png").read_bytes()[:45])
    elif what == "not an image":
        (root / "images/train/s1.png").write_text("hello")
    elif what == "label too large":
        Image.fromarray(np.full((6, 8), 7, dtype=np.uint8)).save(root / "masks/train/s1.png")
    elif what == "another size":
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(root / "masks/train/s1.png")
    elif what == "colour mask":
        Image.fromarray(np.zeros((6, 8, 3), dtype=np.uint8)).save(root / "masks/train/s1.png")
    elif what == "empty":
        for path in (root / "images/train").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("no images folder", ["images", "no such folder"]),
        ("no mask", ["masks/train/s1.png", "no such mask"]),
        ("broken image", ["images/train/s1.png", "broken"]),
        ("not an image", ["images/train/s1.png", "not a readable image"]),
        ("label too large", ["masks/train/s1.png", "label 7", "0..2"]),
        ("another size", ["masks/train/s1.png", "8x8", "8x6"]),
        ("colour mask", ["masks/train/s1.png", "RGB"]),
        ("empty", ["images/train", "no image"]),
    ],
)
def test_errors_name_the_file(tmp_path: Path, what: str, words: list[str]) -> None:
    breaks(make(tmp_path), what)
    with pytest.raises(DataError) as error:
        FolderDataset(tmp_path, "train", num_classes=3, cache=True)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_class_count_must_agree(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"classes\.txt: 2 classes named, but 3 wanted"):
        FolderDataset(make(tmp_path, names="a\nb"), "train", num_classes=3)


def test_class_names_with_a_byte_order_mark(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad\r\ncar\r\n")
    assert FolderDataset(tmp_path, "train").class_names == ["sky", "road", "car"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sky\nfa\xe7ade\ncar\n".encode("latin-1"), ["line 2 is not UTF-8 (byte 0xe7)", "wanted UTF-8"]),
        ("sky\nroad\ncar\n".encode("utf-16"), ["line 1 is not UTF-8"]),
        ("sky\nroad\n".encode("utf-16-le"), ["invisible character"]),
        ("sky\nro\u200bad\n".encode(), ["'ro\\u200bad' holds an invisible character"]),
        (b"sky\nroad\n\nsky\n", ["'sky' names two classes"]),
        (b"\n\n", ["0 class names found, wanted 1 to 255"]),
    ],
)
def test_class_names_that_cannot_be_read(tmp_path: Path, content: bytes, words: list[str]) -> None:
    make(tmp_path)
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError) as error:
        FolderDataset(tmp_path, "train")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'classes.txt'}: ") and "\n" not in message
    for word in words:
        assert word in message


def test_two_masks_for_one_image(tmp_path: Path) -> None:
    make(tmp_path)
    Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(tmp_path / "masks/train/s1.tif")
    with pytest.raises(
        DataError, match=r"s1\.tif: two masks for the image .*s1\.png, the other is s1\.png, wanted one"
    ):
        FolderDataset(tmp_path, "train")


def test_the_cache_is_sized_by_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, stem="a")  # 72 pixels
    write_pair(tmp_path, BANDS.repeat(10, axis=0).repeat(10, axis=1), stem="b")  # 7200
    decoded: list[Path] = []

    def counting(path: Path, read=folder.read_image, **options) -> np.ndarray:  # type: ignore[no-untyped-def]
        decoded.append(path)
        return read(path, **options)

    monkeypatch.setattr(folder, "read_image", counting)
    monkeypatch.setattr(folder, "CACHE_LIMIT_BYTES", 4 * 7272)
    data = FolderDataset(tmp_path, "train")
    data.read(1)
    assert len(decoded) == 2  # in memory from the start
    decoded.clear()
    monkeypatch.setattr(folder, "CACHE_LIMIT_BYTES", 4 * 7272 - 1)
    data = FolderDataset(tmp_path, "train")
    assert decoded == []
    data.read(1)
    assert len(decoded) == 1


def test_each_mask_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(path: Path, read=masks.open_upright):  # type: ignore[no-untyped-def]
        opened.append(path.name)
        return read(path)

    monkeypatch.setattr(masks, "open_upright", counting)
    data = FolderDataset(make(tmp_path), "train", cache=True)
    assert sorted(opened) == ["s0.png", "s1.png", "s2.png"]
    assert [int(data.read(k)[1][0, 0]) for k in range(3)] == [0, 1, 2] and len(opened) == 3
    # nor is one that has not changed counted again
    FolderDataset(tmp_path, "train", cache=False)
    assert len(opened) == 3
    Image.fromarray(np.full((6, 8), 1, dtype=np.uint8)).save(tmp_path / "masks/train/s2.png")
    assert len(FolderDataset(tmp_path, "train", cache=False).class_names) == 2
    assert opened[3:] == ["s2.png"]


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cache", [True, False, None])
@pytest.mark.parametrize("what", ["whole", "broken image", "not an image", "colour mask"])
def test_no_file_is_left_open(tmp_path: Path, cache: bool | None, what: str) -> None:
    breaks(make(tmp_path), what)
    try:
        data = FolderDataset(tmp_path, "train", num_classes=3, cache=cache)
        for index in range(3):
            data.read(index)
        assert what == "whole"
    except DataError:
        assert what != "whole"
    gc.collect()
