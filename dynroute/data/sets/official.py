"""Cityscapes and PASCAL VOC 2012, as they are distributed."""

from __future__ import annotations

from pathlib import Path

from dynroute.data import cityscapes, voc
from dynroute.data.sets.folder import FolderDataset


class Cityscapes(FolderDataset):
    """Cityscapes: `leftImg8bit/<split>/<city>/` beside `gtFine/<split>/<city>/`, 19 classes.

    Masks are the `*_gtFine_labelIds.png`, or the `*_gtFine_labelTrainIds.png` where a split has none of those; where
    `gtFine` has no such split, as for `train_extra`, those in `gtCoarse`. The labels of `test` are not public: its
    masks may be missing, and `read` returns labels that are all ignored.

    Args:
        root: the folder that holds `leftImg8bit/` and `gtFine/`.
        split: `train`, `val`, `test`, `train_extra`.
        cache: see `FolderDataset`.

    Raises:
        DataError: something is missing or malformed; one line that names the file, and the layout where it is missing.
    """

    def __init__(self, root: str | Path, split: str, cache: bool | None = None) -> None:
        super().__init__(root, split, cache=cache, layout=cityscapes.NAME)


class VOC2012(FolderDataset):
    """PASCAL VOC 2012: `JPEGImages/`, `SegmentationClass/` and `ImageSets/Segmentation/<split>.txt`, 21 classes.

    A list's line is an id, or an image and its mask (`/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`). The mask of an
    id is VOC's own, else that in `SegmentationClassAug/`, else the .mat file in SBD's `benchmark_RELEASE/dataset/`, in
    VOCdevkit or beside it (scipy reads it: `pip install 'dynroute[sbd]'`). `train_aug` needs no list where SBD's
    release is there. Masks are palette or grey PNGs, or pictures in VOC's colours. `FolderDataset` reads SBD's release
    alone, too.

    Args:
        root: the folder `VOC2012`, the `VOCdevkit` that holds it, or the one that holds that.
        split: the name of a list: `train`, `val`, `trainval`, `train_aug`; `test` may be without masks.
        cache: see `FolderDataset`.

    Raises:
        DataError: something is missing or malformed; one line that names the file, and the layout where it is missing.
        ImportError: masks are .mat files, and there is no scipy.
    """

    def __init__(self, root: str | Path, split: str, cache: bool | None = None) -> None:
        super().__init__(root, split, cache=cache, layout=voc.NAME)
