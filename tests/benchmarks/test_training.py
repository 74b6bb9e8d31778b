"""Trainings beside each other: what is read of their folders, and what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import training
from tests.support.runs import train_tiny


def test_two_runs_make_a_table_a_picture_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [train_tiny(tmp_path / ops, f"run.ops={ops}") for ops in ("reference", "auto")]
    monkeypatch.setattr(sys, "argv", ["training", *map(str, folders), "--name", "pair", "--out", str(tmp_path)])
    training.main()
    document = json.loads((tmp_path / "pair.json").read_text())
    reference, fused = document["runs"]
    assert (reference["ops"], fused["ops"]) == ("reference", "auto")
    for run in document["runs"]:
        assert run["kind"] == "measured" and run["steps"] == 10
        assert 0 < run["loss_at_end"] < 10 and 0 <= run["miou"] <= 1 and run["ms_per_step"] > 0
        assert len(run["curve"]["step"]) == len(run["curve"]["loss"]) > 0
    assert fused["executed_gmacs"]["backward"] > 0
    assert (tmp_path / "pair.png").stat().st_size > 1000


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.yaml is missing"):
        training.read_run(tmp_path)
