"""The files that `dynroute segment` writes: what they are called, which of them are there, and who wrote them.

Each PNG holds a stamp: a digest of the network and of the settings that decide what is in it.  By it the command knows
its own files, and of them those that it would write again.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import nn

from dynroute.files import write_whole

KINDS = ("overlay", "classes", "confidence")
_KEY = "dynroute segment"


def ours(path: Path) -> bool:
    """Whether a file is one that `dynroute segment` wrote."""
    return path.name.endswith(tuple(f"_{kind}.png" for kind in KINDS)) and _stamp_in(path) is not None


def stamp(net: nn.Module, settings: Mapping[str, Any]) -> str:
    """A digest of a network's weights and of these settings, which have to be plain values."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Results:
    """Results in a folder.

    Args:
        out: the folder; made with the first result.
        kinds: of `KINDS`, what each picture gets.
        stamp: see `stamp`.
        overwrite: results that are there are written again.
    """

    def __init__(self, out: Path, kinds: Sequence[str], stamp: str, overwrite: bool) -> None:
        self.out, self.kinds, self.stamp, self.overwrite = out, tuple(kinds), stamp, overwrite

    def path(self, name: str, kind: str) -> Path:
        """Where a picture's result lies."""
        return self.out / f"{name}_{kind}.png"

    def done(self, name: str) -> bool:
        """Whether all of a picture's results are there and need not be written again.

        Raises:
            ValueError: what is there is somebody else's, or another network's and not to be overwritten.
        """
        there = 0
        for kind in self.kinds:
            path = self.path(name, kind)
            if not path.exists():
                continue
            found = _stamp_in(path)
            if found is None:
                raise ValueError(f"{path}: no result of dynroute segment, never overwritten; wanted another --out")
            if found != self.stamp and not self.overwrite:
                raise ValueError(
                    f"{path}: a result of another network or of other settings; wanted another --out, or --overwrite"
                )
            there += 1
        return there == len(self.kinds) and not self.overwrite

    def write(self, name: str, kind: str, image: Image.Image) -> Path:
        """Writes a result; at any time the file is whole or not there. Raises OSError."""
        info = PngImagePlugin.PngInfo()
        info.add_text(_KEY, self.stamp)
        content = io.BytesIO()
        image.save(content, "PNG", pnginfo=info)
        path = self.path(name, kind)
        write_whole(path, content.getbuffer())
        return path


def _stamp_in(path: Path) -> str | None:
    """A PNG's stamp, from what stands before its pixels."""
    try:
        with path.open("rb") as stream, Image.open(stream, formats=("PNG",)) as file:
            found = file.info.get(_KEY)
    except (OSError, ValueError, SyntaxError):  # no PNG, or a broken one
        return None
    return found if isinstance(found, str) else None
