"""Pictures as viewers show them: upright, in 8 bits, by stated rules; and what is refused, in one line."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynroute.data import DataError, FolderDataset
from dynroute.data.images import SUFFIXES, TooLargeError, find_images, image_area, most_pixels, read_image
from tests.support.pictures import BANDS, exif, write_bomb, write_pair, write_picture, write_png_of_16_bits

# What viewers do for each value of EXIF's orientation, from its definition.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
COLOURS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_upright_as_a_viewer_shows_it(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(COLOURS).save(path, exif=exif(orientation), **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_image(path), TURNED[orientation](COLOURS))


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_photograph_agrees_with_its_mask(tmp_path: Path, orientation: int) -> None:
    write_pair(tmp_path)
    upright = np.repeat((BANDS * 100)[..., None], 3, axis=2).repeat(8, axis=0).repeat(8, axis=1)
    # stored so that turning it as EXIF says gives `upright`
    stored = upright[::-1, ::-1] if orientation == 3 else np.rot90(upright, 1)
    (tmp_path / "images/train/a.png").unlink()
    photo = Image.fromarray(np.ascontiguousarray(stored))
    photo.save(tmp_path / "images/train/a.jpg", exif=exif(orientation), quality=95)
    Image.fromarray(BANDS.repeat(8, axis=0).repeat(8, axis=1)).save(tmp_path / "masks/train/a.png")
    image, mask = FolderDataset(tmp_path, "train").read(0)
    assert image.shape[:2] == mask.shape == (48, 96)
    assert np.abs(image[..., 0].astype(int) - 100 * mask.astype(int)).mean() < 3


def test_grey_of_16_bits_is_divided_by_257(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32767, 32896, 65278, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        found = read_image(tmp_path / name)
        assert found.shape == (1, 8, 3) and (found == found[..., :1]).all()
        np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 127, 128, 254, 255])


def test_floats_in_0_to_1_are_scaled_and_others_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)).save(path)
    np.testing.assert_array_equal(read_image(path)[0, :, 1], [0, 64, 128, 255])
    for value, shown in ((255.0, "0..255"), (-0.1, "-0.1..0")):
        Image.fromarray(np.array([[0, value]], dtype=np.float32)).save(path)
        with pytest.raises(DataError, match=rf"a\.tif: float values {shown}, wanted all of them in 0\.\.1"):
            read_image(path)
    Image.fromarray(np.array([[0, 9]], dtype=np.int32)).save(path)
    with pytest.raises(DataError, match=r"a\.tif: integers of 32 bits \(int32\), wanted 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("value_range", [None, (0.0, 1.0)])
def test_floats_that_are_not_finite_are_refused(
    tmp_path: Path, value: float, value_range: tuple[float, float] | None
) -> None:
    Image.fromarray(np.array([[0, value]], dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: NaN or infinity among its values"):
        read_image(tmp_path / "a.tif", value_range=value_range)


@pytest.mark.parametrize(
    "values, value_range, wanted",
    [
        (np.array([[0, 100, 612, 1123, 1124, 60000]], dtype=np.uint16), (100, 1124), [0, 0, 128, 255, 255, 255]),
        (np.array([[-900, -50, 0, 50, 1e6]], dtype=np.float32), (-50, 50), [0, 0, 128, 255, 255]),
        (np.array([[-7, 0, 100_000, 200_000]], dtype=np.int32), (0, 200_000), [0, 0, 128, 255]),
        (np.array([[0, 50, 100, 200]], dtype=np.uint8), (50, 101), [0, 0, 250, 255]),
    ],
)
def test_a_range_says_what_becomes_0_and_255(
    tmp_path: Path, values: np.ndarray, value_range: tuple[float, float], wanted: list[int]
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", value_range=value_range)[0, :, 1], wanted)


def test_a_range_beyond_8_bits_is_refused_for_8_bits(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: values of 8 bits, wanted such as data\.range is about, 0\.\.4095"):
        read_image(tmp_path / "a.png", value_range=(0, 4095))


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("orientation", [1, 6])
def test_colours_of_16_bits(tmp_path: Path, channels: int, orientation: int) -> None:
    values = np.random.default_rng(2).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    path = tmp_path / "a.png"
    write_png_of_16_bits(path, values, orientation)
    upright = TURNED[orientation](values)[..., :3]
    np.testing.assert_array_equal(read_image(path), upright >> 8)
    found = read_image(path, value_range=(1000, 2020))
    np.testing.assert_array_equal(found, np.rint(np.clip((upright - 1000.0) / 4, 0, 255)))


def test_pixels_beyond_the_limit_are_refused_and_the_limit_can_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)  # 24 pixels
    for count, refused in ((None, False), (24, False), (22, True), (10**12, False)):
        with most_pixels(count):
            for read in (read_image, image_area):
                if refused:
                    with pytest.raises(TooLargeError, match=r"a\.png: not a readable image \(Image size \(24 pixels\)"):
                        read(path)
                else:
                    read(path)
    assert image_area(path) == 24


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), COLOURS)
    grey = Image.fromarray(np.concatenate([COLOURS[..., :1], alpha], axis=2), mode="LA")
    grey.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png"), COLOURS[..., :1].repeat(3, axis=2))


def test_several_frames_are_refused_but_not_a_cameras(tmp_path: Path) -> None:
    first, second = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    for name in ("a.png", "a.webp", "a.tif"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(DataError, match=rf"{name}: 2 frames or pages, wanted a single picture"):
            read_image(tmp_path / name)
    grey = Image.new("RGB", (16, 8), (90, 90, 90))
    grey.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (16, 8))])
    assert (read_image(tmp_path / "a.jpg") == 90).all()


@pytest.mark.parametrize("cut", [9, 40, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_files_are_one_line(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"photo{suffix}"
    write_picture(path, np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut) if cut >= 1 else int(len(whole) * cut)])
    with pytest.raises(DataError) as error:
        read_image(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and message.count(str(path)) == 1


def test_a_bomb_is_one_line(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_bomb(tmp_path / "images/train/a.png")
    for cache in (None, True):
        with pytest.raises(DataError, match=r"a\.png: not a readable image \(Image size \(900000000 pixels\)"):
            FolderDataset(tmp_path, "train", cache=cache)
    with pytest.raises(ValueError, match=r"images/train/a\.png: not a readable image"):
        read_image(find_images(tmp_path / "images/train")[0])


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PNG"])
def test_every_kind_of_picture_is_found(tmp_path: Path, suffix: str) -> None:
    write_pair(tmp_path)
    pixels = read_image(tmp_path / "images/train/a.png")
    (tmp_path / "images/train/a.png").unlink()
    write_picture(tmp_path / f"images/train/a{suffix}", pixels)
    assert FolderDataset(tmp_path, "train").read(0)[0].shape == (6, 12, 3)
    found = find_images(tmp_path / "images/train")
    assert [path.name for path in found] == [f"a{suffix}"] and image_area(found[0]) == 72


def test_hidden_files_are_passed_over_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path)
    for folder in ("images/train", "masks/train"):
        for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "._b.png"):
            (tmp_path / folder / name).write_bytes(b"\0\5\x16\7")
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        assert len(FolderDataset(tmp_path, "train")) == 1
        assert len(FolderDataset(tmp_path, "train")) == 1
        assert len(find_images(tmp_path / "images/train")) == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert f"{tmp_path}: hidden files passed over: 10 (such as " in said[0]
    assert f"{tmp_path / 'images/train'}: hidden files passed over: 5" in said[1]


def test_what_is_no_image_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pair(tmp_path)
    (tmp_path / "images/train/b.gif").write_bytes(b"GIF89a")
    (tmp_path / "images/train/more").mkdir()
    with caplog.at_level(logging.WARNING, logger="dynroute"):
        for _ in range(2):
            assert len(FolderDataset(tmp_path, "train")) == 1
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and f"{tmp_path}: passed over: 2 (such as b.gif), wanted files ending in .jpg" in said[0]


def test_a_link_that_leads_nowhere_is_no_image_less(tmp_path: Path) -> None:
    write_pair(tmp_path)
    write_pair(tmp_path, stem="b")
    (tmp_path / "images/train/b.png").unlink()
    (tmp_path / "images/train/b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"b\.png: not a readable image"):
        FolderDataset(tmp_path, "train")
