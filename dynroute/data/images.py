"""Pictures in files: which files are pictures, and what pixels they hold, upright and in 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from dynroute.data.augment import Normalise
from dynroute.data.source import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# What systems leave in folders, beside names that begin with a dot (`._photo.png`, `.DS_Store`).
_OF_SYSTEMS = ("thumbs.db", "desktop.ini")
_said: set[str] = set()


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


def list_folder(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> Listed:
    """What lies in a folder, sorted; links that lead nowhere are among the files, so that reading them fails."""
    found = Listed([], [], [])
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _OF_SYSTEMS:
            found.hidden.append(path)
        elif path.suffix.lower() in suffixes and (path.is_file() or not path.exists()):
            found.files.append(path)
        else:
            found.others.append(path)
    return found


def say_passed_over(folder: Path, hidden: Sequence[Path], others: Sequence[Path]) -> None:
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


def open_upright(path: Path) -> Opened:
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
        raise DataError(f"{path}: {fault} ({_reason(path, error)})") from None
    raise DataError(f"{path}: {frames} frames or pages, wanted a single picture")


def image_area(path: Path) -> int:
    """Pixels of a picture, by its header alone. Raises DataError."""
    try:
        with Image.open(path) as file:
            return file.width * file.height
    except Exception as error:  # see above
        raise DataError(f"{path}: not a readable image ({_reason(path, error)})") from None


def read_image(path: Path) -> np.ndarray:
    """The pixels of a picture, upright: uint8 [H,W,3] in RGB.

    Grey of 16 bits is divided by 257 and rounded, so that 65535 is 255; colours of 16 bits keep their upper byte. Grey
    of floating point is multiplied by 255 and rounded where all values lie in 0..1. Alpha is dropped: the colours are
    those stored under it.

    Raises:
        DataError: see `open_upright`; or float values outside 0..1, or grey of 32-bit integers; it names the file.
    """
    opened = open_upright(path)
    image = opened.image
    if image.mode.startswith("I;16") or (image.mode == "I" and opened.format == "PNG"):
        return _three((np.asarray(image).astype(np.int32) + 128) // 257)
    if image.mode == "F":
        values = np.asarray(image)
        low, high = float(values.min()), float(values.max())
        if not 0.0 <= low <= high <= 1.0:
            raise DataError(f"{path}: float values {low:g}..{high:g}, wanted all of them in 0..1")
        return _three(np.rint(values * 255.0))
    if image.mode == "I":
        raise DataError(f"{path}: grey of 32-bit integers, wanted 8 or 16 bits, or floats in 0..1")
    try:
        return np.array(image.convert("RGB"))
    except ValueError as error:
        raise DataError(f"{path}: colours of mode {image.mode} ({_reason(path, error)}), wanted grey or RGB") from None


def input_tensor(normalise: Normalise, images: Sequence[np.ndarray]) -> Tensor:
    """Images uint8 [H,W,3] of one size -> float32 [N,3,H,W], channels_last."""
    stacked = torch.stack([torch.from_numpy(normalise(image)) for image in images])
    return stacked.permute(0, 3, 1, 2)


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return " ".join(str(error).replace(str(path), "").split()).strip(" ':") or type(error).__name__
