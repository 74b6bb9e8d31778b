"""Runs drawn on each other."""

from __future__ import annotations

import pytest

from dynroute.report.beside import MOST, Run, beside

LOG = [
    {"step": 20, "segmentation": 2.0, "miou": 0.1, "seconds": 2.0},
    {"step": 40, "segmentation": 1.5, "miou": float("nan"), "seconds": 4.0},
    {"step": 40, "val_miou": 0.25},
]


def test_nothing_to_compare_draws_nothing() -> None:
    assert beside([Run("a", {}, LOG)]) == ""


def test_each_run_has_a_line_and_a_row() -> None:
    page = beside([Run("a", {"run": {"ops": "auto", "seed": 3}}, LOG), Run("<b>", {}, [])])
    assert page.count("<polyline") == 1  # of the loss; one point of mIoU is a number
    assert page.count("<tr>") == 3
    for text in ("auto", "0.1 min, 100 ms a step", "1.5000", "25.0%", "&lt;b&gt;"):
        assert text in page


def test_more_runs_than_colours_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 3 runs"):
        beside([Run("a", {}, [])] * (MOST + 2))
