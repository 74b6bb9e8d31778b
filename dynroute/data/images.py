"""Images that belong to no data set: single files, and folders of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dynroute.data.augment import Normalise

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def find_images(path: Path) -> list[Path]:
    """The file itself, or the images in the folder, sorted. Raises ValueError: none, or two of one stem."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder, wanted an image or a folder of images")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise ValueError(f"{path}: no image in this folder, wanted files ending in {', '.join(SUFFIXES)}")
    stems: dict[str, Path] = {}
    for file in found:
        if file.stem in stems:
            raise ValueError(f"{file}: its results would overwrite those of {stems[file.stem].name} (one stem)")
        stems[file.stem] = file
    return found


def read_image(path: Path) -> np.ndarray:
    """uint8 [H,W,3] in RGB. Raises ValueError that names the file."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), "").strip(" ':") or type(error).__name__
        raise ValueError(f"{path}: not a readable image ({reason})") from None


def input_tensor(normalise: Normalise, images: Sequence[np.ndarray]) -> Tensor:
    """Images uint8 [H,W,3] of one size -> float32 [N,3,H,W], channels_last."""
    stacked = torch.stack([torch.from_numpy(normalise(image)) for image in images])
    return stacked.permute(0, 3, 1, 2)
