"""Data sets, augmentation and the deterministic training stream."""

from dynroute.data.augment import BGR_MEAN, Augmentation, Normalise
from dynroute.data.loader import Stream, batches
from dynroute.data.preprocess import load_preprocess, save_preprocess
from dynroute.data.sets.folder import FolderDataset
from dynroute.data.sets.scenes import ScenesDataset
from dynroute.data.source import IGNORE, DataError, Source

__all__ = [
    "BGR_MEAN",
    "IGNORE",
    "Augmentation",
    "DataError",
    "FolderDataset",
    "Normalise",
    "ScenesDataset",
    "Source",
    "Stream",
    "batches",
    "load_preprocess",
    "save_preprocess",
]
