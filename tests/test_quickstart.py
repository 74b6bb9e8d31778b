"""The quick start: two tiny runs, their savings and their reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynroute import quickstart


def test_quickstart_prints_savings_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["data.scenes_size=64", "data.crop=[64,64]", "data.scenes_val=3", "data.scenes_train=8", "data.workers=0"]
    overrides = [part for item in [*small, "optimiser.batch=2"] for part in ("--set", item)]
    assert quickstart.main(["--out", str(tmp_path), "--steps", "3", "--repeats", "1", *overrides]) == 0
    text = capsys.readouterr().out
    for phrase in (
        "without budget",
        "with budget",
        "expected cost",
        "executed in all",
        "realised share",
        "report.html",
    ):
        assert phrase in text
    assert (tmp_path / "with/report.html").is_file() and (tmp_path / "with/bench.json").is_file()
