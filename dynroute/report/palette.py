"""Colours of classes, class maps and overlays."""

from __future__ import annotations

import base64
import colorsys
import io

import numpy as np
from PIL import Image

# Distinct at thumbnail size, the first a quiet grey since class 0 is so often the ground.
_FIRST = (
    (128, 132, 140), (230, 85, 70), (66, 133, 220), (90, 176, 90), (240, 180, 50), (160, 100, 200), (50, 180, 185),
    (220, 110, 170), (140, 105, 75), (175, 200, 75), (40, 90, 140), (245, 140, 60), (110, 60, 110), (150, 190, 230),
    (60, 115, 75), (200, 160, 130), (100, 100, 190), (190, 60, 110), (215, 215, 140), (70, 70, 80),
)  # fmt: skip
_GOLDEN = 0.618033988749895
IGNORED = (0, 0, 0)
_ROWS = 256  # mixed at once: a large picture's floats would take four times the picture


def palette(classes: int) -> np.ndarray:
    """uint8 [256,3]: a colour for each of `classes`, black for everything else (255: ignored)."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for k in range(min(classes, 255)):
        if k < len(_FIRST):
            colours[k] = _FIRST[k]
        else:
            red, green, blue = colorsys.hsv_to_rgb(k * _GOLDEN % 1.0, 0.45 + 0.1 * (k % 5), 0.55 + 0.08 * (k % 6))
            colours[k] = (round(red * 255), round(green * 255), round(blue * 255))
    return colours


def class_map(labels: np.ndarray, classes: int) -> Image.Image:
    """Labels uint8 [H,W] -> palette image whose indices are the labels: a mask that also looks like one."""
    image = Image.fromarray(np.ascontiguousarray(labels))
    image.putpalette(palette(classes).tobytes())
    return image


def overlay(image: np.ndarray, labels: np.ndarray, classes: int, opacity: float = 0.55) -> Image.Image:
    """Image uint8 [H,W,3] under its class colours."""
    colours = palette(classes).astype(np.float32) * opacity
    mixed = np.empty_like(image)
    for top in range(0, len(image), _ROWS):
        rows = slice(top, top + _ROWS)
        mixed[rows] = (image[rows].astype(np.float32) * (1 - opacity) + colours[labels[rows]]).round()
    return Image.fromarray(mixed)


def data_uri(image: Image.Image, width: int, photo: bool) -> str:
    """`image` at most `width` wide, as a data URI: JPEG for photographs, PNG for flat colours."""
    if image.width > width:
        size = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(size, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if photo:
        image.convert("RGB").save(buffer, "JPEG", quality=82)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if photo else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
