"""Runs that go on by themselves: under torchrun, elsewhere, in another number of processes."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import dynroute
from dynroute.train import Config, ConfigError, loop, restart, train
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.meeting import agreed_name
from dynroute.train.restart import goes_on
from tests.support.processes import ROOT
from tests.support.ranks import exits, together
from tests.support.runs import small

OPTIONS = (
    "optimiser.batch=4", "train.ema=0.9", "run.checkpoint_every=2", "evaluation.every=4", "schedule.steps=6",
)  # fmt: skip
# The first process dies in the fourth step of the first attempt.
DRIVER = """
import os, signal, sys
from dynroute.cli import main
from dynroute.train import loop

real, taken = loop.train_step, []

def step(*arguments):
    taken.append(1)
    if len(taken) == 4 and os.environ["RANK"] == os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

loop.train_step = step
sys.exit(main(["train", sys.argv[1]]))
"""


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{**line, "seconds": 0} for line in lines]


def run_whole(rank: int, processes: int, config: Config) -> None:
    train(config, quiet=True)


def test_torchrun_starts_it_again(tmp_path: Path) -> None:
    """The leader is killed, leaving its lock: the run ends as one that nothing happened to, bit for bit, with every
    record once; accumulation, drop path, budget and average on."""
    options = (*OPTIONS, "optimiser.accumulate=2")
    small(tmp_path / "run", *options).save(tmp_path / "config.yaml")
    (tmp_path / "driver.py").write_text(DRIVER)
    command = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=1", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *command, str(tmp_path / "driver.py"), str(tmp_path / "config.yaml")],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "another process of this run is gone; what it said tells why" in done.stderr
    assert "train: took over" in done.stderr and "train: goes on from" in done.stderr
    together(run_whole, 2, tmp_path / "ranks", small(tmp_path / "whole", *options))
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    one, two = (dynroute.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "run"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def killed_in_step_4(config: Config) -> None:
    real, taken = loop.train_step, []

    def step(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    loop.train_step = step  # type: ignore[assignment]  # in a process of its own
    train(config, quiet=True)


def test_two_processes_killed_and_resumed_on_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And made longer: but for rounding what one process does that was killed and made longer, drop path included."""
    runs = {}
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        assert exits(killed_in_step_4, processes, small(run, *OPTIONS)) == [-signal.SIGKILL] * processes
        assert Checkpoints(run).read()[0]["processes"] == processes
        train(small(run, *OPTIONS, "schedule.steps=8"), resume=True, quiet=True)
        runs[processes] = [line for line in records(run) if "loss" in line]
        said = "train: 1 process instead of 2: the same images and drop paths, added in another order" + "\n"
        assert (said in capsys.readouterr().err) == (processes == 2)
    assert [line["step"] for line in runs[2]] == list(range(1, 9))
    for a, b in zip(runs[2], runs[1], strict=True):
        for key in ("loss", "segmentation", "budget", "expected_share", "lr"):
            # rounding in float32 grows from step to step; other drop paths would be several per cent
            assert a[key] == pytest.approx(b[key], rel=5e-3), (a["step"], key)


def test_which_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As asked; else that of the same torchrun alone, not one that was there before."""
    checkpoints = Checkpoints(tmp_path)
    assert [goes_on(checkpoints, choice) for choice in ("never", "auto", "always")] == [False, False, True]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    own = restart.job()
    assert own is not None and str(os.getppid()) in own
    for written, goes in ((own, True), (None, False), (own.replace(str(os.getppid()), "1"), False)):
        checkpoints.write({"step": 1, "job": written})
        assert checkpoints.job() == written
        assert goes_on(checkpoints, "auto") and goes_on(checkpoints, "always")
        if goes:
            assert goes_on(checkpoints, "never")
            continue
        with pytest.raises(ConfigError, match=r"already holds a run; resume it \(--resume\), or choose another folder"):
            goes_on(checkpoints, "never")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    checkpoints.write({"step": 1, "job": own})
    assert restart.job() is None
    with pytest.raises(ConfigError, match="already holds a run"):
        goes_on(checkpoints, "never")


def test_auto_begins_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(small(tmp_path / "run", "run.resume=auto", "schedule.steps=2"), quiet=True)
    assert "goes on" not in capsys.readouterr().err
    train(small(run, "run.resume=auto", "schedule.steps=3"), quiet=True)
    assert f"train: goes on from {run / 'checkpoints/step-0000002.pt'}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        train(small(tmp_path / "other", "run.resume=always"), quiet=True)


def test_a_name_that_only_the_living_know() -> None:
    """Processes started again and again meet over one store, in whatever order they come; what the dead left there,
    greetings and answers, confuses nobody."""
    store, names = dist.HashStore(), []

    def meet(order: list[int]) -> set[str]:
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda rank=rank: found.append(agreed_name(store, rank, len(order))))
            for rank in order
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == len(order)
        return set(found)

    for order in ([0, 1, 2], [2, 1, 0], [1, 0], [0], [3, 2, 0, 1]):
        names.append(meet(order))
    assert all(len(name) == 1 for name in names) and len(set.union(*names)) == len(names)
    with pytest.raises(ConnectionError, match=r"processes \[1, 2\] of this run do not come"):
        agreed_name(store, 0, 3, datetime.timedelta(seconds=0.1))
