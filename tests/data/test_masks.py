"""What masks store is what is read, whatever holds it; and what is no mask is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dynroute.data import DataError, FolderDataset
from dynroute.data.masks import count_values, read_values
from tests.support.pictures import BANDS, exif, write_bomb, write_grey_png, write_pair


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("palette", [False, True])
def test_stored_indices_at_every_depth(tmp_path: Path, bits: int, palette: bool) -> None:
    values = np.arange(77, dtype=np.uint8).reshape(7, 11) % min(2**bits, 64)
    path = tmp_path / "mask.png"
    if palette:
        image = Image.fromarray(values)
        image.putpalette([(k * 37 + 11) % 256 for k in range(768)])
        image.save(path, bits=bits)
    else:
        write_grey_png(path, values, bits)
    found = read_values(path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


def test_four_bit_masks_train_as_their_classes(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_grey_png(tmp_path / "masks/train/a.png", BANDS, 4)
    data = FolderDataset(tmp_path, "train")
    assert data.class_names == ["class_0", "class_1", "class_2"]
    np.testing.assert_array_equal(data.read(0)[1], BANDS)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32), ("tiff", np.float32), ("bmp", "u1")],
)
def test_wide_masks_hold_whole_numbers(tmp_path: Path, suffix: str, dtype: object) -> None:
    write_pair(tmp_path)
    (tmp_path / "masks/train/a.png").unlink()
    Image.fromarray(BANDS.astype(dtype)).save(tmp_path / f"masks/train/a.{suffix}")
    image, mask = FolderDataset(tmp_path, "train").read(0)
    assert mask.dtype == np.uint8 and image.shape == (6, 12, 3)
    np.testing.assert_array_equal(mask, BANDS)


@pytest.mark.parametrize(
    ("dtype", "value", "shown"),
    [
        (np.float32, 0.5, "value 0.5"),
        (np.float32, np.nan, "value nan"),
        (np.float32, 70000, "value 70000"),
        (np.int32, -5, "value -5"),
        (np.int32, -1, "label -1"),
        (np.uint16, 300, "label 300"),
    ],
)
def test_wide_values_that_are_no_label_are_named(tmp_path: Path, dtype: type, value: float, shown: str) -> None:
    write_pair(tmp_path)
    (tmp_path / "masks/train/a.png").unlink()
    values = BANDS.astype(dtype)
    values[2, 3] = value
    Image.fromarray(values).save(tmp_path / "masks/train/a.tif")
    with pytest.raises(DataError, match=rf"masks/train/a\.tif: {shown} found, wanted [^\n]*$"):
        FolderDataset(tmp_path, "train")


def test_an_ignored_minus_one(tmp_path: Path) -> None:
    write_pair(tmp_path)
    (tmp_path / "masks/train/a.png").unlink()
    values = BANDS.astype(np.int32)
    values[0] = -1
    Image.fromarray(values).save(tmp_path / "masks/train/a.tif")
    mask = FolderDataset(tmp_path, "train", ignore=-1).read(0)[1]
    assert (mask[0] == 255).all() and (mask[1:] == BANDS[1:]).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused(tmp_path: Path, mode: str) -> None:
    Image.fromarray(BANDS).convert(mode).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=rf"m\.png: mode {mode}, a picture in colours; wanted [^\n]*$"):
        read_values(tmp_path / "m.png")


def test_what_changes_labels_is_refused(tmp_path: Path) -> None:
    Image.fromarray(BANDS).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(DataError, match=r"m\.png: JPEG, which does not keep labels"):
        read_values(tmp_path / "m.png")
    Image.fromarray(BANDS).save(tmp_path / "m.tif", tiffinfo={262: 0})
    with pytest.raises(DataError, match=r"m\.tif: a TIFF that counts from white"):
        read_values(tmp_path / "m.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_mask_is_upright_too(tmp_path: Path, orientation: int, dtype: type) -> None:
    values = np.arange(24, dtype=dtype).reshape(4, 6)
    found = []
    for path in (tmp_path / "m.png", tmp_path / "m.tif", tmp_path / "deflated.tif"):
        if path.suffix == ".tif" or dtype != np.float32:
            packed = {"compression": "tiff_deflate"} if path.stem == "deflated" else {}
            Image.fromarray(values).save(path, exif=exif(orientation), **packed)
            found.append(read_values(path))
    turned = Image.fromarray(values.astype(np.uint8))
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned))
    for one in found:
        np.testing.assert_array_equal(one, expected)
    assert orientation == 1 or not np.array_equal(expected, values)


def test_bombs_and_truncated_files_are_one_line(tmp_path: Path) -> None:
    write_bomb(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png: not a readable image \(Image size \(900000000 pixels\)[^\n]*$"):
        read_values(tmp_path / "bomb.png")
    write_grey_png(tmp_path / "m.png", np.arange(4096).reshape(64, 64) * 7 % 256, 8)
    (tmp_path / "m.png").write_bytes((tmp_path / "m.png").read_bytes()[:150])
    with pytest.raises(DataError, match=r"m\.png: broken image \([^\n]*$"):
        read_values(tmp_path / "m.png")


def test_values_are_counted() -> None:
    for dtype in (np.uint8, np.int32):
        assert count_values(BANDS.astype(dtype)) == {0: 24, 1: 24, 2: 24}
