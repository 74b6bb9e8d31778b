"""Colours of classes and of errors."""

from __future__ import annotations

import numpy as np

from dynroute.report.choose import error_map
from dynroute.report.palette import class_map, data_uri, overlay, palette


def test_colours() -> None:
    assert len({tuple(colour) for colour in palette(60)[:60].tolist()}) == 60
    labels = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    shown = class_map(labels, 3)
    assert np.array_equal(np.asarray(shown), labels)
    image = np.full((2, 2, 3), 200, dtype=np.uint8)
    assert overlay(image, labels, 3).size == (2, 2)
    assert data_uri(shown, 320, photo=False).startswith("data:image/png;base64,")
    wrong = error_map(image, np.zeros((2, 2), np.uint8), labels)
    assert (wrong[0, 1] == wrong[1, 0]).all() and not (wrong[0, 0] == wrong[0, 1]).all()
