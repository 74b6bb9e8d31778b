"""Predictions as the servers of Cityscapes and PASCAL VOC take them."""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from dynroute.data import cityscapes, voc
from dynroute.data.labels import CITYSCAPES, VOC2012
from dynroute.data.sets.folder import FolderDataset
from dynroute.data.source import Source
from dynroute.files import write_whole

_CLASSES = {cityscapes.NAME: list(CITYSCAPES.values()), voc.NAME: list(VOC2012)}
_FRAME = re.compile(r"[^_]+_\d{6}_\d{6}")


class Submission:
    """A PNG for each image of a split, full size: of Cityscapes label ids, of VOC class indices under VOC's palette.

    Inside `with`, `add` takes the predictions. The folder is there, whole, at its end; after an error it is not.

    Cityscapes' are `out/<name of the image>.png`, which begin with city, sequence and frame; VOC's
    `out/results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png`.

    Args:
        out: where they go.
        source: the images; Cityscapes or VOC 2012 in its official layout.
        classes: the network's names of its classes; None where it has none. `class_0`, `class_1`, ... say nothing.

    Raises:
        ValueError: other data, other classes, or a folder that holds something already.
    """

    def __init__(self, out: Path, source: Source, classes: Sequence[str] | None) -> None:
        layout = source.layout if isinstance(source, FolderDataset) else None
        if not isinstance(source, FolderDataset) or layout not in _CLASSES:
            got = f"{source.root}" if isinstance(source, FolderDataset) else type(source).__name__
            raise ValueError(f"submit: wanted Cityscapes or PASCAL VOC 2012 as they are distributed, got {got}")
        wanted = _CLASSES[layout]
        made_up = [f"class_{k}" for k in range(len(wanted))]
        if classes is not None and list(classes) not in (wanted, made_up):
            other = next((name for name in classes if name not in wanted), "another order")
            raise ValueError(f"submit: wanted a network of the {len(wanted)} classes of {layout}, this one has {other}")
        self._source = source
        self.folder = out
        self._values = list(CITYSCAPES)
        if layout == voc.NAME:
            self.folder = out / f"results/VOC2012/Segmentation/comp6_{source.split}_cls"
            self._values = list(range(len(VOC2012)))
        else:
            odd = next((source.name(k) for k in range(len(source)) if not _FRAME.match(source.name(k))), None)
            if odd is not None:
                raise ValueError(f"submit: {odd}: no name of Cityscapes, wanted CITY_123456_123456 to begin it")
        self._palette = voc.COLOURS if layout == voc.NAME else None
        blocked = next((part for part in (self.folder, *self.folder.parents) if part.exists()), self.folder)
        if blocked.exists() and not blocked.is_dir():
            raise ValueError(f"submit: {blocked}: wanted a folder, this is a file")
        held = sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []
        if held:
            raise ValueError(
                f"submit: {self.folder}: wanted a new or an empty folder, this holds {len(held)} (such as {held[0]})"
            )
        self._partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}")

    def add(self, index: int, labels: np.ndarray) -> None:
        """The prediction for image `index` of the split: classes uint8 [H,W], at the image's size."""
        picture = Image.fromarray(np.array(self._values, dtype=np.uint8)[labels])
        if self._palette is not None:
            picture.putpalette(self._palette.tobytes())
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        write_whole(self._partial / f"{self._source.name(index)}.png", buffer.getvalue())

    def __enter__(self) -> Submission:
        self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
            return
        if self.folder.exists():
            self.folder.rmdir()
        self._partial.rename(self.folder)
