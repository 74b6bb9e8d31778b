"""Pictures of any number of channels, and what of them is refused, in one line."""

from __future__ import annotations

import re
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from dynroute.data import DataError
from dynroute.data.channels import visible
from dynroute.data.images import TooLargeError, image_area, most_pixels, read_image
from dynroute.data.tar import Member, Tar
from tests.support.pictures import write_png_of_16_bits

H, W = 5, 7
RNG = np.random.default_rng(0)


def values(channels: int, dtype: Any = np.uint16) -> np.ndarray:
    """[H, W, C] of all values of an integer, or of 0..1."""
    drawn = RNG.random((H, W, channels))
    return drawn.astype(dtype) if np.dtype(dtype).kind == "f" else (drawn * np.iinfo(dtype).max).astype(dtype)


def in_8_bits(stored: np.ndarray) -> np.ndarray:
    """By the stated rule."""
    if stored.dtype == np.uint8:
        return stored
    return np.rint(stored * 255.0 if stored.dtype.kind == "f" else stored / 257.0).astype(np.uint8)


def refused(path: Any, channels: int, message: str, **options: Any) -> None:
    with pytest.raises(DataError) as error:
        read_image(path, channels, **options)
    assert re.fullmatch(f"{re.escape(str(path))}: {message}", str(error.value)), str(error.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2", np.float32, np.float64], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_arrays(tmp_path: Path, channels: int, dtype: Any) -> None:
    stored = values(channels, dtype)
    np.save(tmp_path / "a.npy", np.asfortranarray(stored) if channels == 7 else stored)
    found = read_image(tmp_path / "a.npy", channels)
    assert type(found) is np.ndarray and found.dtype == np.uint8
    np.testing.assert_array_equal(found, in_8_bits(stored))
    assert image_area(tmp_path / "a.npy") == H * W


def test_an_array_without_channels_is_grey(tmp_path: Path) -> None:
    stored = values(1, np.uint8)
    np.save(tmp_path / "a.npy", stored[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", 1), stored)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy"), np.repeat(stored, 3, axis=2))


def test_a_range_is_for_bands_too(tmp_path: Path) -> None:
    stored = np.array([[[0, 500], [1000, 1510], [2020, 65535]]], dtype=np.uint16)
    np.save(tmp_path / "a.npy", stored)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="contig")
    for name in ("a.npy", "a.tif"):
        found = read_image(tmp_path / name, 2, (1000, 2020))
        np.testing.assert_array_equal(found, [[[0, 0], [0, 128], [255, 255]]])
    np.save(tmp_path / "b.npy", stored.astype(np.int32) - 100)
    np.testing.assert_array_equal(read_image(tmp_path / "b.npy", 2, (900, 1920)), found)
    refused(tmp_path / "b.npy", 2, r"integers of 32 bits \(int32\), wanted 8 or 16 bits .*")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32], ids=str)
@pytest.mark.parametrize("channels", [2, 4, 5])
@pytest.mark.parametrize(
    "how",
    [
        {"photometric": "minisblack", "planarconfig": "contig"},
        {"photometric": "minisblack", "planarconfig": "separate"},
        {"photometric": "rgb", "planarconfig": "contig"},
        {"photometric": "minisblack", "compression": "zlib", "planarconfig": "contig"},
        {"photometric": "minisblack"},  # a page for each channel
    ],
    ids=["contig", "separate", "rgb", "compressed", "pages"],
)
def test_tiffs(tmp_path: Path, how: dict[str, Any], channels: int, dtype: Any) -> None:
    channels = max(channels, 4 if how["photometric"] == "rgb" else 1)  # of three colours Pillow takes the upper bytes
    stored, path = values(channels, dtype), tmp_path / "a.tif"
    whole = how.get("planarconfig") == "contig"
    tifffile.imwrite(path, stored if whole else stored.transpose(2, 0, 1).copy(), **how)
    np.testing.assert_array_equal(read_image(path, channels), in_8_bits(stored))
    assert image_area(path) == H * W
    refused(path, 6, rf"wanted 6 channels \(data\.channels\), got {channels}")
    refused(path, 1, rf"wanted 1 channel \(data\.channels\), got {channels}")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright_as_pictures_are(tmp_path: Path, orientation: int) -> None:
    stored = values(4, np.uint8)
    extra = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "bands.tif", stored.astype(np.uint16) * 257, photometric="rgb", extratags=extra)
    tifffile.imwrite(tmp_path / "plain.tif", stored[..., :3], photometric="rgb", extratags=extra)
    found = read_image(tmp_path / "bands.tif", 4)
    assert found.shape == ((H, W, 4) if orientation < 5 else (W, H, 4))
    np.testing.assert_array_equal(found[..., :3], read_image(tmp_path / "plain.tif"))


def test_where_white_is_zero(tmp_path: Path) -> None:
    stored = values(2)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", planarconfig="contig")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 2), in_8_bits(65535 - stored))


def test_smaller_copies_are_not_the_picture(tmp_path: Path) -> None:
    stored = values(4)
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        how: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
        out.write(stored, **how)
        out.write(stored[::2, ::2], subfiletype=1, **how)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", 4), in_8_bits(stored))
    with tifffile.TiffWriter(tmp_path / "a.tif") as out:
        out.write(stored, **how)
        out.write(stored[:3], **how)
    refused(tmp_path / "a.tif", 4, "2 pictures of different kinds, wanted one")


@pytest.mark.parametrize(
    "mode, channels",
    [("1", 1), ("L", 1), ("LA", 1), ("LA", 2), ("RGBA", 4), ("CMYK", 4)],
)
def test_pictures_keep_their_own_channels(tmp_path: Path, mode: str, channels: int) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    stored = values(len(mode), np.uint8)
    if mode == "1":
        stored = (stored > 127) * np.uint8(255)
        Image.fromarray(stored[..., 0] > 0).save(path)
    elif mode == "CMYK":
        tifffile.imwrite(path, stored, photometric="separated")
    else:
        Image.fromarray(stored[..., 0] if mode == "L" else stored).save(path)
    np.testing.assert_array_equal(read_image(path, channels), stored[..., :channels])
    refused(path, 5, rf"wanted 5 channels \(data\.channels\), got {len(mode)}")
    assert read_image(path).shape == (H, W, 3)


def test_colours_are_not_made_grey_nor_grey_given_alpha(tmp_path: Path) -> None:
    Image.fromarray(values(3, np.uint8)).save(tmp_path / "rgb.jpg")
    Image.fromarray(values(1, np.uint8)[..., 0]).save(tmp_path / "grey.png")
    refused(tmp_path / "rgb.jpg", 1, r"wanted 1 channel \(data\.channels\), got 3")
    refused(tmp_path / "rgb.jpg", 4, r"wanted 4 channels \(data\.channels\), got 3")
    refused(tmp_path / "grey.png", 2, r"wanted 2 channels \(data\.channels\), got 1")


@pytest.mark.parametrize("clear", [False, True])
def test_palettes_are_colours_with_alpha_where_they_have_it(tmp_path: Path, clear: bool) -> None:
    image = Image.fromarray(np.arange(4, dtype=np.uint8).reshape(2, 2))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    image.save(tmp_path / "a.png", **({"transparency": 1} if clear else {}))
    if not clear:
        return refused(tmp_path / "a.png", 4, r"wanted 4 channels \(data\.channels\), got 3")
    wanted = [[[10, 20, 30, 255], [40, 50, 60, 0]], [[70, 80, 90, 255], [1, 2, 3, 255]]]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 4), wanted)


def test_pictures_of_16_bits(tmp_path: Path) -> None:
    grey, colours = values(1), values(4)
    Image.fromarray(grey[..., 0]).save(tmp_path / "grey.png")
    write_png_of_16_bits(tmp_path / "colours.png", colours)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 1), in_8_bits(grey))
    np.testing.assert_array_equal(read_image(tmp_path / "colours.png", 4), colours >> 8)
    found = read_image(tmp_path / "colours.png", 4, (0, 65535))
    np.testing.assert_array_equal(found, np.rint(colours / 257.0))
    tifffile.imwrite(tmp_path / "rgb.tif", colours[..., :3], photometric="rgb")
    found = read_image(tmp_path / "rgb.tif", value_range=(1000, 2020))
    np.testing.assert_array_equal(found, np.rint(np.clip((colours[..., :3] - 1000.0) / 4, 0, 255)))


def test_grey_of_16_bits_with_alpha(tmp_path: Path) -> None:
    """Which Pillow takes for RGBA."""
    stored = values(2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in stored)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", W, H, 16, 4, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 2), stored >> 8)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), stored[..., :1] >> 8)
    refused(tmp_path / "a.png", 4, r"wanted 4 channels \(data\.channels\), got 2")


@pytest.mark.parametrize(
    "array, channels, message",
    [
        (np.zeros((4, H, W), np.uint8), 4, r"wanted 4 channels .*, got 7; its shape is \[4, 5, 7\], wanted \[H,W,C\]"),
        (np.zeros(4, np.uint8), 1, r"an array of shape \[4\], wanted \[H,W\] or \[H,W,C\]"),
        (np.zeros((0, 4), np.uint8), 1, r"an array of shape \[0, 4\], wanted \[H,W\] or \[H,W,C\]"),
        (np.zeros((H, W, 2), np.complex64), 2, "values of type complex64, wanted integers or floats"),
        (np.zeros((H, W), [("a", "u1")]), 1, r"values of type \[\('a', 'u1'\)\], wanted integers or floats"),
        (np.array([[{}]]), 1, "an array of pickled objects, wanted one of numbers"),
        (np.full((H, W, 2), np.nan, np.float32), 2, "NaN or infinity among its values, wanted finite numbers"),
        (np.full((H, W, 2), 7.0), 2, r"float values 7\.\.7, wanted all of them in 0\.\.1, or data\.range"),
    ],
    ids=["planes first", "one axis", "empty", "complex", "structured", "objects", "nan", "floats"],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, array: np.ndarray, channels: int, message: str) -> None:
    np.save(tmp_path / "a.npy", array)
    refused(tmp_path / "a.npy", channels, message)


def test_tiffs_that_are_no_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((2, 3, H, W), np.uint16), photometric="minisblack")
    refused(path, 4, r"axes \w+ of sizes \[2, 3, 5, 7\], wanted rows, columns and channels")
    tifffile.imwrite(path, np.zeros((H, W), np.uint16), photometric="palette", colormap=np.zeros((3, 65536), np.uint16))
    refused(path, 1, "PALETTE of 16 bits, wanted grey, RGB or bands")
    tifffile.imwrite(path, np.zeros((9, H, W), np.uint16), photometric="minisblack")
    refused(path, 3, "9 frames or pages, wanted a single picture")


@pytest.mark.parametrize("cut", [9, 40, 0.5, 0.95])
@pytest.mark.parametrize("suffix", [".tif", ".npy"])
def test_truncated_files_are_one_line(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"a{suffix}"
    stored = RNG.integers(0, 65536, (40, 50, 4), dtype=np.uint16)
    if suffix == ".npy":
        np.save(path, stored)
    else:
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut) if cut >= 1 else int(len(whole) * cut)])
    refused(path, 4, "[^\n]+")


def test_without_tifffile_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values(4), photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    refused(tmp_path / "a.tif", 4, r"a TIFF of many bands or bits, wanted tifffile: pip install 'dynroute\[tiff\]'")


def test_pixels_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", values(4))
    tifffile.imwrite(tmp_path / "a.tif", values(4), photometric="minisblack", planarconfig="contig")
    for name in ("a.npy", "a.tif"):
        for count, fits in ((H * W + 1, True), (H * W - 3, False)):
            with most_pixels(count):
                if fits:
                    assert read_image(tmp_path / name, 4).shape == (H, W, 4)
                    continue
                for read in (lambda path: read_image(path, 4), image_area):
                    with pytest.raises(TooLargeError, match=rf"{name}: not a readable image \(35 pixels, wanted at"):
                        read(tmp_path / name)


def test_a_member_of_a_tar_is_read_as_a_file_is(tmp_path: Path) -> None:
    stored = values(4)
    np.save(tmp_path / "a.npy", stored)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="contig")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.npy", "a.tif"):
            tar.add(tmp_path / name, name)
    found = (tmp_path / "a.tar").stat()
    with tarfile.open(tmp_path / "a.tar") as tar:
        of = Tar(tmp_path / "a.tar", found.st_size, found.st_mtime_ns)
        members = [Member(of, one.name, one.offset_data, one.size) for one in tar.getmembers()]
    for member in members:
        np.testing.assert_array_equal(read_image(member, 4), in_8_bits(stored))
        refused(member, 6, r"wanted 6 channels \(data\.channels\), got 4")


def test_channels_that_are_passed_over_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored, path = values(4, np.uint8), tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unspecified"])
    with caplog.at_level("WARNING", "dynroute"):
        np.testing.assert_array_equal(read_image(path), stored[..., :3])
    assert "a.tif: RGB and more channels, which are not read here and in others; data.channels reads" in caplog.text
    np.testing.assert_array_equal(read_image(path, 4), stored)


def test_what_is_shown() -> None:
    image = values(5, np.uint8)
    np.testing.assert_array_equal(visible(image), image[..., :3])
    for channels in (1, 2):
        np.testing.assert_array_equal(visible(image[..., :channels]), np.repeat(image[..., :1], 3, axis=2))
