"""SIGKILL at any change that a run makes to its folder: it goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dynroute
from dynroute.train import ConfigError, train
from dynroute.train.checkpoint import Checkpoints
from tests.support.processes import ROOT
from tests.support.runs import small

OPTIONS = (
    "schedule.steps=6", "run.checkpoint_every=2", "evaluation.every=4", "run.keep_checkpoints=2", "data.scenes_val=1",
    "evaluation.precise_bn_batches=1", "train.ema=0.9", "optimiser.accumulate=2",
)  # fmt: skip
RUNS, KILLS = 7, 4
# One process imports; each attempt is a child of it, which kills itself before its nth change of the folder, if it gets
# there. A run is attempted with each n, then without. A line of the output: the exit statuses of a run's attempts.
DRIVER = """
import json, os, signal, sys
import torch, torch._dynamo  # which torch.optim would import in each child
torch.set_num_threads(1)
from pathlib import Path
from dynroute.train import load_config, train
from dynroute.train.checkpoint import Checkpoints

CHANGES = {"os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir"}

def attempt(config, left):
    folder = config.run.folder
    def count(event, arguments):
        nonlocal left
        if event == "open":
            path, mode, flags = arguments
            change = bool(flags & (os.O_WRONLY | os.O_RDWR))
        else:
            path, change = (arguments or ("",))[0], event in CHANGES
        if change and str(path).startswith(folder):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    train(config, resume=bool(Checkpoints(Path(folder))), quiet=True)

for file, *points in json.loads(sys.argv[1]):
    config, statuses = load_config(file), []
    for n in [*points, 0]:
        child = os.fork()
        if child == 0:
            attempt(config, n)
            os._exit(0)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if statuses[-1] == 0:
            break
    print(json.dumps(statuses), flush=True)
"""


def records(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_killed_at_random_points(tmp_path: Path) -> None:
    whole = train(small(tmp_path / "whole", *OPTIONS), quiet=True)
    one = dynroute.from_pretrained(whole / "model").state_dict()
    draw, plan = random.Random(0), []
    for k in range(RUNS):
        small(tmp_path / f"run{k}", *OPTIONS).save(tmp_path / f"{k}.yaml")
        # an attempt that is not killed makes some 50 changes, one that goes on fewer
        plan.append([str(tmp_path / f"{k}.yaml"), *(draw.randint(1, 48 // (i + 1)) for i in range(KILLS))])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(plan)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(statuses[-1] == 0 and set(statuses[:-1]) <= {-signal.SIGKILL} for statuses in found), found
    assert sum(len(statuses) - 1 for statuses in found) >= 20, found
    for k in range(RUNS):
        run = tmp_path / f"run{k}"
        assert records(run) == records(whole), plan[k]
        two = dynroute.from_pretrained(run / "model").state_dict()
        assert all(torch.equal(one[key], two[key]) for key in one), plan[k]
        state, _, lines = Checkpoints(run).read()
        assert state["step"] == 6 and not lines, plan[k]
        left = {path.name for path in run.iterdir()}
        assert left == {path.name for path in whole.iterdir()}, plan[k]


def test_a_log_that_runs_ahead(tmp_path: Path) -> None:
    """Records behind the checkpoint, a line cut short, an evaluation told already: each is there once in the end."""
    run = train(small(tmp_path / "run", *OPTIONS), quiet=True)
    expected = records(run)
    for step in (4, 6):
        for path in (run / "checkpoints").glob(f"step-000000{step + 1}*"):
            path.unlink()
        with (run / "log.jsonl").open("a") as log:
            log.write('{"step": 7, "loss": 1.0}\n{"step": 5, "lo')
        train(small(run, *OPTIONS), resume=True, quiet=True)
        assert records(run) == expected
        os.unlink(run / "checkpoints/step-0000006.json")
    with pytest.raises(ConfigError, match="already holds a run"):
        train(small(run, *OPTIONS), quiet=True)
