"""Whole runs: resuming bit for bit, learning, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import dynroute
from dynroute.data import ScenesDataset, understood
from dynroute.measure import evaluate
from dynroute.train import ConfigError, load_config, loop, train
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.setup import normalisation
from tests.support.runs import small


def records(folder: Path) -> list[dict[str, Any]]:
    """Log records without the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Press Ctrl-C in the middle of step number `steps`."""
    real, taken = loop.train_step, []

    def step(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    whole = train(small(tmp_path / "whole", f"data.workers={workers}", "evaluation.every=4"), quiet=True)
    broken = small(tmp_path / "broken", f"data.workers={workers}", "evaluation.every=4")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 5"):
            train(broken, quiet=True)
    torch.randn(7)  # whatever happens in between must not matter
    train(broken, resume=True, quiet=True)

    assert records(tmp_path / "broken") == records(whole)
    one, two = (dynroute.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    evals = [json.loads((tmp_path / name / "eval.json").read_text()) for name in ("whole", "broken")]
    assert evals[0]["per_image"] == evals[1]["per_image"]


def test_a_signal_to_the_whole_group_leaves_a_checkpoint(tmp_path: Path) -> None:
    small(tmp_path / "run", "data.workers=1", "schedule.steps=100000").save(tmp_path / "config.yaml")
    code = f"from dynroute.train import *; train(load_config({str(tmp_path / 'config.yaml')!r}), quiet=True)"
    run = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "run/log.jsonl", time.monotonic() + 60
    while not (log.is_file() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(run.pid, signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode != 0 and "KeyboardInterrupt: stopped after step" in errors, errors
    assert Checkpoints(tmp_path / "run").read()[2] == [] and not (tmp_path / "run/lock.json").exists()


def test_what_a_run_leaves(tmp_path: Path) -> None:
    config = small(tmp_path / "run", "budget.measure=expected")
    folder = train(config, quiet=True)
    assert load_config(folder / "config.yaml") == config
    last = [record for record in records(folder) if "loss" in record][-1]
    assert last["step"] == 8
    assert {"lr", "loss", "segmentation", "budget", "expected_share", "real_share", "miou"} <= set(last)
    assert last["loss"] == pytest.approx(last["segmentation"] + last["budget"], rel=1e-6)
    assert any((folder / "tb").iterdir()) and not list(folder.glob("*.partial"))

    report = json.loads((folder / "eval.json").read_text())
    assert report["seed"] == 0 and set(report["versions"]) == {"python", "torch", "dynroute"}
    assert report["machine"]["cores"] >= 1 and "commit" in report and report["command"]
    # The saved network evaluates to what the report says, alone and in batches.
    net = dynroute.from_pretrained(folder / "model")
    normalise, names = understood(net.preprocess, "model")
    assert normalise == normalisation(config.data) and names is not None and names[0] == "ground"
    for batch in (1, 3):
        again = evaluate(net, ScenesDataset(4, 64, seed=1), normalise, batch=batch)
        assert again.miou == pytest.approx(report["miou"], abs=1e-3)
        assert again.costs["real_mflops"] == pytest.approx(report["real_mflops"], rel=1e-3)


def test_it_learns(tmp_path: Path) -> None:
    overrides = ["schedule.steps=60", "schedule.warmup_steps=10", "data.scenes_train=4", "data.flip=false",
                 "data.scale=[1, 1]", "data.jitter=0", "model.drop_prob=0", "optimiser.batch=4", "budget.weight=0",
                 "model.layers=5"]  # fmt: skip
    losses = [record["loss"] for record in records(train(small(tmp_path / "run", *overrides), quiet=True))[:60]]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train(small(tmp_path / "none"), resume=True, quiet=True)
    assert not (tmp_path / "none").exists()
    folder = train(small(tmp_path / "run", "schedule.steps=2"), quiet=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(small(folder, "schedule.steps=2"), quiet=True)
    with pytest.raises(ConfigError, match="model"):
        train(small(tmp_path / "m", "model.name=resnet"), quiet=True)


def test_out_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "train_step", lambda *arguments, **options: torch.empty(2**50))
    with pytest.raises(ConfigError, match=r"^step 1: out of memory; a smaller optimiser.batch"):
        train(small(tmp_path / "run"), quiet=True)


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(small(tmp_path / "run", "schedule.steps=2"), False, True))
    thread.start()
    thread.join(60)
    assert (tmp_path / "run/eval.json").is_file()
