"""Tiny shards: by webdataset's own writer, and member by member."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from tests.support.pictures import BANDS


def png(values: np.ndarray) -> bytes:
    """A picture uint8 [H,W] or [H,W,3] as the bytes of a PNG."""
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def picture(shade: int, mask: np.ndarray = BANDS) -> bytes:
    """A PNG whose red is 40 times the label and whose green is `shade`."""
    pixels = np.zeros((*mask.shape, 3), dtype=np.uint8)
    pixels[..., 0] = mask * np.uint8(40)
    pixels[..., 1] = shade
    return png(pixels)


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_shards(
    root: Path, split: str = "train", samples: int = 7, of_each: int = 2, mask: np.ndarray = BANDS, first: int = 0
) -> Path:
    """Shards of `of_each` samples as webdataset writes them: KEY.png, whose green is its number, and KEY.mask.png."""
    root.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(root / f"{split}-%06d.tar"), maxcount=of_each, verbose=0) as out:
        for k in range(first, first + samples):
            out.write({"__key__": f"{k:06d}", "png": picture(k, mask), "mask.png": png(mask)})
    return root
