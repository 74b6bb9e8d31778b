"""Pictures in files: which files are pictures, and what pixels they hold, upright and in 8 bits."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dynroute.data.augment import Normalise
from dynroute.data.channels import band_area, fit_channels, holds_bands, read_bands
from dynroute.data.source import DataError, File

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".npy")
# What systems leave in folders, beside names that begin with a dot (`._photo.png`, `.DS_Store`).
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
_said: set[str] = set()


class TooLargeError(DataError):
    """A picture of more pixels than `most_pixels` allows."""


@dataclass(frozen=True)
class Opened:
    """A picture as it is stored, decoded and upright.

    Attributes:
        image: loaded, its file closed.
        format: of the file, whatever its name says: `PNG`, `JPEG`, ...
        stored: the samples' kind in the file, as Pillow names it; `L;4` are grey values of four bits.
    """

    image: Image.Image
    format: str
    stored: str


class Listed(NamedTuple):
    """What lies in a folder: files that end as wanted, hidden ones, such as systems leave there, and all else."""

    files: list[Path]
    hidden: list[Path]
    others: list[Path]


def say_once(message: str) -> None:
    """A warning in the log, the first time that it is said in this process."""
    if message not in _said:
        _said.add(message)
        logging.getLogger("dynroute").warning("dynroute: %s", message)


def is_hidden(name: str) -> bool:
    """Whether a file of this name is one that systems leave, which nobody means to be read."""
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def list_folder(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> Listed:
    """What lies in a folder, sorted; links that lead nowhere are among the files, so that reading them fails."""
    found = Listed([], [], [])
    for path in sorted(folder.iterdir()):
        if is_hidden(path.name):
            found.hidden.append(path)
        elif path.suffix.lower() in suffixes and (path.is_file() or not path.exists()):
            found.files.append(path)
        else:
            found.others.append(path)
    return found


def say_passed_over(folder: Path, hidden: Sequence[File], others: Sequence[File]) -> None:
    """Say once what of a folder of images is not looked at."""
    if hidden:
        say_once(f"{folder}: hidden files passed over: {len(hidden)} (such as {hidden[0].name})")
    if others:
        wanted = ", ".join(SUFFIXES)
        say_once(f"{folder}: passed over: {len(others)} (such as {others[0].name}), wanted files ending in {wanted}")


def find_images(path: Path) -> list[Path]:
    """The file itself, or the images in the folder, sorted. Raises ValueError: none, or two of one stem."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder, wanted an image or a folder of images")
    found, hidden, others = list_folder(path)
    say_passed_over(path, hidden, others)
    if not found:
        raise ValueError(f"{path}: no image in this folder, wanted files ending in {', '.join(SUFFIXES)}")
    stems: dict[str, Path] = {}
    for file in found:
        if file.stem in stems:
            raise ValueError(f"{file}: its results would overwrite those of {stems[file.stem].name} (one stem)")
        stems[file.stem] = file
    return found


def open_upright(path: File) -> Opened:
    """Decode a picture and turn it as its EXIF orientation says, as viewers do.

    Of a camera's JPEG with further pictures behind the first (MPO) the first is taken; any other file of several frames
    or pages is refused.

    Raises:
        DataError: not a picture, truncated, larger than Pillow's limit for decompression, animated; it names the file.
    """
    fault, frames = "not a readable image", 1
    try:
        # as a stream: Pillow maps files that it opens by name, wrongly so TIFFs that are turned by 90 degrees
        with path.open("rb") as stream, Image.open(stream) as file:
            fault = "broken image"
            kind = file.format or "?"
            frames = 1 if kind == "MPO" else getattr(file, "n_frames", 1)
            raw = file.tile[0][3] if file.tile else ""
            stored = raw if isinstance(raw, str) else str(raw[0]) if isinstance(raw, tuple) and raw else ""
            if frames == 1:
                file.load()
                return Opened(ImageOps.exif_transpose(file), kind, stored)
    except Exception as error:  # a broken file ends Pillow's readers in whatever their parsers happen to meet
        raise _fault(path, fault, error) from None
    raise DataError(f"{path}: {frames} frames or pages, wanted a single picture")


def image_area(path: File) -> int:
    """Pixels of a picture, by its header alone. Raises DataError."""
    try:
        if holds_bands(path, 3, exact=False):
            return band_area(path)
        with path.open("rb") as stream, Image.open(stream) as file:
            return file.width * file.height
    except DataError:
        raise
    except Exception as error:  # see above
        raise _fault(path, "not a readable image", error) from None


def read_image(path: File, channels: int = 3, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """The pixels of a picture, upright: uint8 [H,W,channels].

    Its values become those of 8 bits as `eight_bits` says. With 3 channels it is in RGB: grey is taken three times, and
    alpha dropped: the colours are those stored under it; colours of 16 bits that Pillow reads keep their upper byte
    where there is no range. With any other number they are the picture's own, in their order: grey (its alpha dropped),
    grey and alpha, RGBA, CMYK, the bands of a TIFF or of an array [H,W,C] in a `.npy`.

    Raises:
        DataError: see `open_upright`, `read_bands` and `eight_bits`; or another number of channels; it names the file.
    """
    if holds_bands(path, channels, exact=value_range is not None):
        try:
            values = eight_bits(path, fit_channels(path, read_bands(path), channels), value_range)
        except DataError:
            raise
        except Exception as error:  # see `open_upright`
            raise _fault(path, "not a readable image", error) from None
        return np.array(values) if isinstance(values, np.memmap) else values  # no file stays open
    opened = open_upright(path)
    image = opened.image
    if channels != 3:
        return fit_channels(path, _own_channels(path, opened, channels, value_range), channels)
    if opened.format == "TIFF" and opened.stored.startswith("RGBX"):
        say_once(f"{path}: RGB and more channels, which are not read here and in others; data.channels reads them")
    if value_range is not None and ";16" in opened.stored and image.mode in ("RGB", "RGBA"):
        return eight_bits(path, _colours_of_16_bits(path, opened), value_range)[..., :3]
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
        return _three(eight_bits(path, np.asarray(image).astype(np.uint16), value_range))
    if image.mode in ("F", "I"):
        return _three(eight_bits(path, np.asarray(image), value_range))
    try:
        colours = np.array(image.convert("RGB"))
    except ValueError as error:
        raise DataError(f"{path}: colours of mode {image.mode} ({_reason(path, error)}), wanted grey or RGB") from None
    return eight_bits(path, colours, value_range)


def eight_bits(path: File, values: np.ndarray, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Values as they are stored -> uint8 of the same shape.

    With a range (low, high), low and what is below becomes 0, high and what is above 255, evenly between, rounded,
    whatever the values' type. Without one, 8 bits stay as they are, 16 bits are divided by 257 and rounded, so that
    65535 is 255, and floats, all of them in 0..1, are multiplied by 255 and rounded.

    Raises:
        DataError: floats that are not finite; with a range, 8 bits that cannot reach its ends; without one, floats
            outside 0..1 or integers of other sizes; it names the file.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path}: NaN or infinity among its values, wanted finite numbers")
    if value_range is not None:
        low, high = value_range
        if values.dtype == np.uint8 and not 0 <= low < high <= 255:
            raise DataError(f"{path}: values of 8 bits, wanted such as data.range is about, {low:g}..{high:g}")
        scaled = np.clip(values, low, high, dtype=np.float64 if values.dtype.itemsize > 2 else np.float32) - low
        scaled *= 255.0
        scaled /= high - low
        return np.rint(scaled, out=scaled).astype(np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not 0.0 <= low <= high <= 1.0:
            raise DataError(f"{path}: float values {low:g}..{high:g}, wanted all of them in 0..1, or data.range")
        return np.rint(values * 255.0).astype(np.uint8)
    raise DataError(
        f"{path}: integers of {8 * values.dtype.itemsize} bits ({values.dtype}), wanted 8 or 16 bits without sign, "
        "floats in 0..1, or data.range"
    )


@contextmanager
def most_pixels(count: int | None) -> Iterator[None]:
    """Inside, pictures of up to `count` pixels are read; None: up to Pillow's limit, 178,956,970.

    A file of a few bytes can claim any size: more is refused before it is decoded.
    """
    before = Image.MAX_IMAGE_PIXELS
    if count is not None:
        Image.MAX_IMAGE_PIXELS = -(-count // 2)  # Pillow warns there, and refuses from twice as many on
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def input_tensor(normalise: Normalise, images: Sequence[np.ndarray]) -> Tensor:
    """Images uint8 [H,W,3] of one size -> float32 [N,3,H,W], channels_last."""
    stacked = torch.stack([torch.from_numpy(normalise(image)) for image in images])
    return stacked.permute(0, 3, 1, 2)


def _own_channels(path: File, opened: Opened, channels: int, value_range: tuple[float, float] | None) -> np.ndarray:
    """uint8 [H,W,C]: the channels that a picture has; grey's alpha only where two are wanted."""
    image = opened.image
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
        values = np.asarray(image).astype(np.uint16)
    elif ";16" in opened.stored and value_range is not None:
        values = _colours_of_16_bits(path, opened)
    elif image.mode in ("F", "I", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK"):
        values = np.asarray(image)
    elif image.mode in ("1", "P", "PA"):
        clear = image.mode == "PA" or "transparency" in image.info
        values = np.asarray(image.convert("L" if image.mode == "1" else "RGBA" if clear else "RGB"))
    else:
        raise DataError(f"{path}: colours of mode {image.mode}, wanted grey, RGB or RGBA, or data.channels: 3")
    values = np.atleast_3d(values)
    if opened.stored.startswith("LA;16"):  # Pillow makes RGBA of it
        values = values[..., ::3]
    if (values.shape[2], channels) == (2, 1):
        values = values[..., :1]
    return eight_bits(path, values, value_range)


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _colours_of_16_bits(path: File, opened: Opened) -> np.ndarray:
    """uint16 [H,W,C] of a PNG whose upper bytes Pillow has decoded: its lower bytes are read beside them."""
    if opened.format != "PNG":
        raise DataError(f"{path}: {opened.format} of 16 bits in colours, wanted PNG where there is a data.range")
    try:
        with path.open("rb") as stream, Image.open(stream) as file:
            # the same bytes, taken for such that lie the other way round
            file.tile = [tile._replace(args=str(tile.args).replace("16B", "16L")) for tile in file.tile]
            file.load()
            low = ImageOps.exif_transpose(file)
    except Exception as error:  # see above
        raise _fault(path, "broken image", error) from None
    return np.asarray(opened.image).astype(np.uint16) << 8 | np.asarray(low)


def _fault(path: File, fault: str, error: Exception) -> DataError:
    kind = TooLargeError if isinstance(error, Image.DecompressionBombError) else DataError
    return kind(f"{path}: {fault} ({_reason(path, error)})")


def _reason(path: File, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return " ".join(str(error).replace(str(path), "").split()).strip(" ':") or type(error).__name__
