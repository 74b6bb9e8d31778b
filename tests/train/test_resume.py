"""Runs that go on as others: longer, elsewhere, otherwise watched; and what may not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dynroute
from dynroute.train import ConfigError, train
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.config import ScheduleConfig
from dynroute.train.optimiser import learning_rate
from dynroute.train.resume import check_same
from tests.support.runs import small


def log_of(run: Path) -> list[dict[str, Any]]:
    """Without alarms."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "alarm" not in record]


def test_a_longer_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After its end: the schedule is that of the new total, from there on; every record is there once."""
    run = train(small(tmp_path / "run", "schedule.steps=6"), quiet=True)
    first = log_of(run)
    train(small(run, "schedule.steps=10"), resume=True, quiet=True)
    old, new = ScheduleConfig(6, 2), ScheduleConfig(10, 2)
    rate = learning_rate(6, 0.05, new)
    said = capsys.readouterr().err
    assert "schedule.steps is 10 instead of 6" in said
    assert f"the learning rate there is {rate:.4g} instead of 0, and falls to 0 at step 10" in said
    records = log_of(run)
    assert records[: len(first)] == first
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 10]
    rates = [r["lr"] for r in records if "lr" in r]
    assert rates == [learning_rate(k, 0.05, old if k < 6 else new) for k in range(10)]
    report = json.loads((run / "eval.json").read_text())
    assert report["steps"] == 10 and report["config"]["schedule"]["steps"] == 10
    again = train(small(run, "schedule.steps=10"), resume=True, quiet=True)  # nothing to do but the evaluation
    assert [{**r, "seconds": 0} for r in log_of(again)] == [{**r, "seconds": 0} for r in records]


def test_a_shorter_run(tmp_path: Path) -> None:
    run = train(small(tmp_path / "run", "schedule.steps=6", "run.checkpoint_every=3"), quiet=True)
    with pytest.raises(ConfigError, match=r"schedule.steps: .*step-0000006.pt is of step 6, wanted 6 or more, got 5"):
        train(small(run, "schedule.steps=5"), resume=True, quiet=True)
    (run / "checkpoints/step-0000006.pt").unlink()
    train(small(run, "schedule.steps=5"), resume=True, quiet=True)
    assert Checkpoints(run).read()[0]["step"] == 5
    assert [r["step"] for r in log_of(run)] == [1, 2, 3, 4, 5, 5]


def test_what_may_change(tmp_path: Path) -> None:
    """None of these changes a weight."""
    whole = train(small(tmp_path / "whole"), quiet=True)
    run = train(small(tmp_path / "run", "schedule.steps=8"), quiet=True)
    (run / "checkpoints/step-0000008.pt").unlink()
    moved = run.rename(tmp_path / "moved")
    changed = [
        "run.threads=null", "run.device=cpu", "run.log_every=3", "run.checkpoint_every=2", "run.keep_checkpoints=2",
        "run.max_skipped=5", "evaluation.max_images=1", "evaluation.flip=true", "data.workers=1", "run.graph=false",
    ]  # fmt: skip
    train(small(moved, *changed), resume=True, quiet=True)
    report = json.loads((moved / "eval.json").read_text())
    assert report["images"] == 1 and report["passes"] == 2 and report["config"]["run"]["log_every"] == 3
    one, two = (dynroute.from_pretrained(folder / "model").state_dict() for folder in (whole, moved))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert [r["step"] for r in log_of(moved)] == [1, 2, 3, 4, 6, 8]
    assert len(list((moved / "checkpoints").glob("*.pt"))) == 2


def test_a_run_that_ended_before_its_evaluation_goes_on_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynroute.train import finish

    def fails(*arguments: Any, **options: Any) -> Any:
        raise ValueError("an evaluation that fails")

    with monkeypatch.context() as patch:
        patch.setattr(finish, "evaluate", fails)
        with pytest.raises(ValueError, match="that fails"):
            train(small(tmp_path / "run"), quiet=True)
    train(small(tmp_path / "run", "evaluation.max_images=2"), resume=True, quiet=True)
    assert json.loads((tmp_path / "run/eval.json").read_text())["images"] == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimiser.batch=4",
            "another recipe than its beginning: keep 2, or begin another run in another run.folder",
        ),
        ("train.ema=0.9", "an average is of all steps, and one of another decay cannot be made of it: keep 0.0"),
        ("schedule.power=1", "another recipe"),
        ("schedule.warmup_steps=1", "another recipe"),
        ("budget.target=0.5", "another recipe"),
        ("train.bn=open", "another recipe"),
        ("model.layers=5", "the checkpoint's weights are of another network: keep 4, or begin another run"),
        ("data.flip=false", "would see other images"),
        ("run.seed=1", "other numbers than its beginning: keep 0, or begin .*by model.init=.*run/model"),
    ],
)
def test_what_may_not_change(tmp_path_factory: pytest.TempPathFactory, override: str, message: str) -> None:
    """The field, what it was and is, the reason, and the ways out."""
    run = tmp_path_factory.getbasetemp() / "not_changed/run"
    if not run.exists():
        train(small(run, "schedule.steps=2"), quiet=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=message) as failed:
        train(small(run, "schedule.steps=2", override), resume=True, quiet=True)
    key, _, value = override.partition("=")
    assert str(failed.value).startswith(f"{key}: the run to resume has ") and f"got {value}".lower() in str(
        failed.value
    ).lower().replace("'", "")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_another_number_of_processes_or_parts(tmp_path: Path) -> None:
    """What is said of it."""
    saved = small(tmp_path, "optimiser.batch=4").to_dict()
    state = {"step": 4, "config": saved, "processes": 2}

    def said(processes: int, *overrides: str) -> list[str]:
        return check_same(state, small(tmp_path, "optimiser.batch=4", *overrides), tmp_path / "a.pt", processes)

    other = "BatchNorm and the budget see other samples together than before, so that the rest is another run"
    assert said(2) == []
    assert said(1) == ["1 process instead of 2: the same images and drop paths, added in another order"]
    assert said(4)[0].startswith("4 processes instead of 2: ") and len(said(4)) == 1
    assert said(2, "optimiser.accumulate=2") == ["optimiser.accumulate is 2 instead of 1 from step 4 on", other]
    saved["train"]["sync_bn"] = False
    assert said(1, "train.sync_bn=false")[1:] == [other] and said(2, "train.sync_bn=false") == []
    saved["train"]["sync_bn"], saved["optimiser"]["accumulate"] = True, 2
    assert said(1, "optimiser.accumulate=2")[1:] == [other]
