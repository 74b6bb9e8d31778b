"""Data sets, augmentation and the deterministic training stream."""

from dynroute.data.augment import BGR_MEAN, Augmentation, Normalise
from dynroute.data.loader import Stream, batches
from dynroute.data.preprocess import described, understood
from dynroute.data.sets.classes import ImageClasses
from dynroute.data.sets.folder import FolderDataset
from dynroute.data.sets.official import VOC2012, Cityscapes
from dynroute.data.sets.scenes import ScenesDataset
from dynroute.data.sets.shards import ShardDataset
from dynroute.data.source import IGNORE, DataError, Source

__all__ = [
    "BGR_MEAN",
    "IGNORE",
    "VOC2012",
    "Augmentation",
    "Cityscapes",
    "DataError",
    "FolderDataset",
    "ImageClasses",
    "Normalise",
    "ScenesDataset",
    "ShardDataset",
    "Source",
    "Stream",
    "batches",
    "described",
    "understood",
]
