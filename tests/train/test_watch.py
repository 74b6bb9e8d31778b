"""Alarms of a training: when they are said, of which images; in the log, on stderr and in TensorBoard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dynroute.cost.budget import Budget
from dynroute.models.config import NetworkConfig
from dynroute.space.wiring import path_exists
from dynroute.train import train
from dynroute.train.log import TrainingLog
from dynroute.train.processes import Team
from dynroute.train.watch import HOLD, Watch
from tests.support.ranks import together
from tests.support.runs import small

LAYERS, STEPS = 4, 100
NETWORK = NetworkConfig(num_classes=3, channels=8, layers=LAYERS)
CPU = torch.device("cpu")
ALONE = Team(CPU)


def watch(team: Team = ALONE, budget: Budget | None = None) -> Watch:
    return Watch(NETWORK, budget, (64, 64), STEPS, team)


def gates(images: int, dead: bool) -> torch.Tensor:
    """All open, but for the node of layer 1 at 1/4 where it is dead."""
    alphas = path_exists(LAYERS).float().repeat(images, 1, 1, 1)
    alphas[:, 2, 0] *= not dead
    return alphas


def windows(own: Watch, *dead: bool, first: int = 1, images: int = 8) -> list[tuple[int, str, bool]]:
    """(step, kind, whether it began) of windows of one step each."""
    found = []
    for step, is_dead in enumerate(dead, first):
        own.step(gates(images, is_dead), None)
        found += [(step, change.kind, change.alarm is not None) for change in own.look(step, {})[1]]
    return found


def test_an_alarm_is_said_once_when_it_begins_and_once_when_it_ends() -> None:
    assert HOLD == 3
    own = watch()
    assert windows(own, True, True, False, True, True) == []  # never three in a row
    assert windows(own, True, True, True, first=6) == [(6, "dead_nodes", True)]
    assert windows(own, False, False, True, False, False, first=9) == []
    own.step(gates(8, dead=False), None)
    values, (change,) = own.look(14, {})
    assert values == {"open_nodes": 1.0, "route_bits": 0.0}
    assert (change.kind, change.alarm, change.since) == ("dead_nodes", None, 6)
    assert windows(own, False, True, True, first=15) == []


def test_too_few_images_wait_for_the_next_window() -> None:
    """Three windows of two images each are too few, the fourth makes one window of eight."""
    assert windows(watch(), *[True] * 11, images=2) == []
    assert windows(watch(), *[True] * 12, images=2) == [(12, "dead_nodes", True)]


def test_steps_that_were_skipped_do_not_count() -> None:
    own, skipped = watch(), torch.tensor(True)
    for step in range(1, 5):
        own.step(gates(8, dead=True), torch.tensor(False))
        own.step(torch.full_like(gates(8, dead=False), float("nan")), skipped)
        values, found = own.look(step, {})
        assert [change.kind for change in found] == ["dead_nodes"] * (step == HOLD)
        assert values == {"open_nodes": pytest.approx(12 / 13), "route_bits": 0.0}
    own.step(gates(8, dead=False), skipped)
    assert own.look(5, {}) == ({}, [])  # no images at all


def test_a_collapse_leaves_the_other_alarms_as_they_were() -> None:
    own = watch()
    assert windows(own, *[True] * 3) == [(3, "dead_nodes", True)]
    for step in range(4, 8):
        own.step(torch.zeros_like(gates(8, dead=True)), None)
        assert [change.kind for change in own.look(step, {})[1]] == ["all_closed"] * (step == 6)
    assert windows(own, *[True] * 3, first=8) == [(10, "all_closed", False)]


def test_shares_of_the_record_are_looked_at() -> None:
    own = watch(budget=Budget(weight=1.0, target=0.1))
    for step in range(60, 60 + HOLD):
        own.step(gates(8, dead=False), None)
        _, found = own.look(step, {"expected_share": 0.5, "space_share": 1.0})
    assert [change.kind for change in found] == ["all_open", "one_route", "expected_far_from_real"]


def test_what_is_saved_goes_on(tmp_path: Path) -> None:
    """After any step, within a window too; through a file that runs no code."""
    whole = windows(watch(), *[True] * 20, *[False] * 20, images=5)
    assert [began for _, _, began in whole] == [True, False]
    for stop in range(1, 40, 3):
        before, after = watch(), watch()
        dead = [True] * 20 + [False] * 20
        found = windows(before, *dead[:stop], images=5)
        torch.save(before.state(), tmp_path / "state.pt")
        after.load_state(torch.load(tmp_path / "state.pt", weights_only=True), CPU)
        assert found + windows(after, *dead[stop:], first=stop + 1, images=5) == whole


def of_two(rank: int, processes: int) -> list[Any]:
    """The first one's images leave a node closed that the second one's open, from step 5 on none does."""
    import torch.distributed as dist

    team = Team(CPU, rank, processes, control=dist.group.WORLD)
    own, found = watch(team), []
    for step in range(1, 9):
        own.step(gates(4, dead=rank == 0 or step > 4), None)
        values, changes = own.look(step, {})
        assert values["route_bits"] == (1.0 if step < 5 else 0.0)
        found += [(step, change.kind) for change in changes]
        if step == 6:  # within no window, but after two that are dead
            own.step(gates(2, dead=True), None)
            state = own.state()
            own = watch(team)
            own.load_state(state, CPU)
            own.step(gates(1, dead=True), None)
            found.append(len(own.state()["routes"]))
    return found


def test_two_processes_look_at_the_images_of_both(tmp_path: Path) -> None:
    """And what a checkpoint holds is counted once when it is loaded: 2 + 2 images, and one more of each."""
    assert together(of_two, 2, tmp_path / "ranks") == [[6, (7, "dead_nodes")]] * 2


def test_the_log_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = TrainingLog(tmp_path, 3, every=1, steps=STEPS, start=0, quiet=True, watch=watch())
    logits, labels = torch.zeros(8, 3, 4, 4), torch.zeros(8, 16, 16, dtype=torch.long)
    for step in range(1, 8):
        log.step(step, 0.1, {"loss": torch.tensor(1.0)}, logits, labels, None, gates(8, dead=step < 5))
    log.close()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    began, ended = (record for record in records if "alarm" in record)
    assert records[0]["open_nodes"] == pytest.approx(12 / 13) and records[0]["route_bits"] == 0
    assert records.index(began) == 3 and began["step"] == 3
    assert began["alarm"]["state"] == "began" and began["alarm"]["kind"] == "dead_nodes"
    assert began["alarm"]["numbers"]["closed"] == [[1, 4]]
    assert ended == {"step": 7, "alarm": {"state": "ended", "kind": "dead_nodes", "since": 3}}
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("train: step 3: yellow alarm: 1 of the grid's 13 nodes is open for none of 8 images")
    assert said[1] == "train: step 7: the alarm dead_nodes of step 3 has ended"
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert [event.step for event in board.Tensors("alarms/dead_nodes/text_summary")] == [3, 7]


# gates that a budget presses with a hundred times their learning rate are closed after three steps
COLLAPSE = [
    "schedule.steps=12", "schedule.warmup_steps=0", "optimiser.batch=4", "optimiser.clip_norm=1e6",
    "optimiser.gate_lr_factor=100", "model.drop_prob=0", "budget.weight=1000", "budget.target=0", "budget.start=0",
    "budget.ramp=0.01", "run.log_every=2", "run.checkpoint_every=5", "data.scenes_val=8",
    "evaluation.precise_bn_batches=1",
]  # fmt: skip


def alarms_of(run: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "alarm" in record]


def test_a_training_whose_gates_collapse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said in training and of the evaluation, and by a resumed run in the same records."""
    run = train(small(tmp_path / "run", *COLLAPSE), quiet=True)
    found = alarms_of(run)
    assert [(r["alarm"]["kind"], r["alarm"]["state"]) for r in found] == [
        ("all_closed", "began"), ("all_closed", "evaluation"),
    ]  # fmt: skip
    assert found[0]["step"] in (6, 8, 10) and found[1]["step"] == 12
    report = json.loads((run / "eval.json").read_text())
    assert [alarm["kind"] for alarm in report["alarms"]] == ["all_closed"]
    assert report["routes"]["open_nodes"] < 0.02 and report["routes"]["images"] == 8
    assert capsys.readouterr().err.count("the gates have collapsed") == 2

    again = shutil.copytree(run, tmp_path / "again")
    for path in (again / "checkpoints").glob("step-*"):
        if int(path.stem[5:]) > 5:  # in the middle of a window, after one or two that are closed
            path.unlink()
    train(small(again, *COLLAPSE), resume=True, quiet=True)
    assert alarms_of(again) == found


def test_a_training_that_begins_is_not_blamed_for_open_gates(tmp_path: Path) -> None:
    """A budget that acts from 40% on has closed nothing before, and has not had its time at 50%."""
    config = small(
        tmp_path / "run", "schedule.steps=6", "optimiser.batch=8", "budget.start=0.4", "budget.ramp=0.5",
        "evaluation.precise_bn_batches=1", "data.scenes_val=8",
    )  # fmt: skip
    run = train(config, quiet=True)
    assert [record["alarm"]["state"] for record in alarms_of(run)].count("began") == 0
    kinds = {record["alarm"]["kind"] for record in alarms_of(run)}
    assert "budget_missed" in kinds  # the evaluation says so: no step of six has closed a tenth
