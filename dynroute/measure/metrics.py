"""Segmentation metrics from one confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dynroute.data import IGNORE


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pixels by label and prediction.

    Args:
        predicted: integer, any shape, values 0..num_classes-1.
        labels: integer, the same shape; 255 is ignored.
        num_classes: K.

    Returns:
        int64 [K, K]; row = label, column = prediction.
    """
    if predicted.shape != labels.shape:
        raise ValueError(f"predicted: wanted the labels' shape {list(labels.shape)}, got {list(predicted.shape)}")
    kept = labels != IGNORE
    pairs = labels[kept].long() * num_classes + predicted[kept].long()
    return torch.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """mIoU, IoU of each class (NaN for a class that is neither in the labels nor predicted), pixel accuracy."""

    miou: float
    iou: list[float]
    pixel_accuracy: float


def scores(confusion: Tensor) -> Scores:
    """Scores of a confusion matrix [K, K].

    IoU_k = hits / (labels + predictions - hits). A class absent from labels and predictions has none and is left out of
    the mean; with no pixel at all every score is NaN.
    """
    counts = confusion.double()
    hits = counts.diagonal()
    iou = hits / (counts.sum(0) + counts.sum(1) - hits)
    return Scores(float(iou.nanmean()), iou.tolist(), float(hits.sum() / counts.sum()))
