"""Folder data sets: what is read, and what is said when something is wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.data import DataError, FolderDataset


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
    mask[0] = 4
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
