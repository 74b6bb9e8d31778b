"""Metrics against numbers worked out by hand."""

import math

import pytest
import torch

from dynroute.train import confusion_matrix, scores


def test_confusion_and_scores_by_hand() -> None:
    labels = torch.tensor([[0, 0, 0, 1], [1, 255, 255, 3]], dtype=torch.uint8)
    predicted = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 3]])
    confusion = confusion_matrix(predicted, labels, 5)
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == [[2, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0] * 5, [0, 0, 0, 1, 0], [0] * 5]
    result = scores(confusion)
    # class 0: 2 / (3 + 3 - 2), class 1: 1 / (2 + 2 - 1), class 3: 1; classes 2 and 4 are absent
    assert result.iou[:2] == pytest.approx([0.5, 1 / 3]) and result.iou[3] == 1.0
    assert math.isnan(result.iou[2]) and math.isnan(result.iou[4])
    assert result.miou == pytest.approx((0.5 + 1 / 3 + 1) / 3)
    assert result.pixel_accuracy == pytest.approx(4 / 6)


def test_rows_are_labels_and_columns_predictions() -> None:
    """A wall taken for sky is not sky taken for a wall."""
    confusion = confusion_matrix(torch.tensor([2, 2, 2, 0, 1]), torch.tensor([0, 0, 1, 0, 1]), 3)
    assert confusion.tolist() == [[1, 0, 2], [0, 1, 1], [0, 0, 0]]


def test_a_class_only_predicted_counts_as_zero() -> None:
    result = scores(confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 0]), 2))
    assert result.iou == [0.5, 0.0] and result.miou == 0.25


def test_nothing_labelled() -> None:
    result = scores(confusion_matrix(torch.tensor([0]), torch.tensor([255]), 2))
    assert math.isnan(result.miou) and math.isnan(result.pixel_accuracy)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="predicted: wanted the labels' shape"):
        confusion_matrix(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long), 2)
