"""Pictures and masks as files, the odd ones too, and data sets of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

BANDS = np.repeat(np.arange(3, dtype=np.uint8), 4)[None].repeat(6, axis=0)
"""Labels 0, 1, 2 in three upright bands, uint8 [6, 12]."""


def exif(orientation: int) -> Image.Exif:
    """EXIF that says how a picture is to be turned."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """uint8 [H,W,3] as a file of the kind that its name says."""
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)


def write_grey_png(path: Path, values: np.ndarray, bits: int, size: tuple[int, int] | None = None) -> None:
    """A grey PNG of 1, 2, 4 or 8 bits that stores these values [H, W]; `size` is a lie about its width and height."""
    height, width = values.shape
    rows = b""
    for row in values:
        digits = "".join(format(int(value), f"0{bits}b") for value in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + bytes(int(digits[k : k + 8], 2) for k in range(0, len(digits), 8))
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, 0, 0, 0, 0)
    _write_png(path, {b"IHDR": header, b"IDAT": zlib.compress(rows)})


def write_png_of_16_bits(path: Path, values: np.ndarray, orientation: int = 1) -> None:
    """A PNG in colours [H, W, 3 or 4] of 16 bits, which EXIF says to turn."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    turned = exif(orientation).tobytes().removeprefix(b"Exif\0\0")
    _write_png(path, {b"IHDR": header, b"eXIf": turned, b"IDAT": zlib.compress(rows)})


def _write_png(path: Path, parts: dict[bytes, bytes]) -> None:
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in {**parts, b"IEND": b""}.items():
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content)


def write_bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 900 million pixels."""
    write_grey_png(path, BANDS, 8, size=(30000, 30000))


def folders(root: Path, split: str = "train") -> tuple[Path, Path]:
    """The folders of a split's images and masks, made."""
    made = root / "images" / split, root / "masks" / split
    for folder in made:
        folder.mkdir(parents=True, exist_ok=True)
    return made


def write_pair(root: Path, mask: np.ndarray = BANDS, stem: str = "a", split: str = "train", shade: int = 0) -> None:
    """One image whose red is 40 times the label plus `shade`, and its mask, both PNG."""
    images, masks = folders(root, split)
    pixels = np.zeros((*mask.shape, 3), dtype=np.uint8)
    pixels[..., 0] = mask.astype(np.int64) * 40 % 256
    pixels[..., 1] = shade
    Image.fromarray(pixels).save(images / f"{stem}.png")
    Image.fromarray(mask).save(masks / f"{stem}.png")
