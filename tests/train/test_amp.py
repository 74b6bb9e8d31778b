"""Training in 16 bits: the scale of float16's loss beside torch's own, and what it does with what is not finite."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dynroute.native import library
from dynroute.train import ConfigError, amp, load_config, loop, train
from dynroute.train.amp import FIRST, GROWTH, LossScale
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.config import OptimiserConfig
from dynroute.train.optimiser import make_optimiser
from dynroute.train.step import train_step
from tests.support.networks import random_images, random_network
from tests.support.runs import small

CPU = torch.device("cpu")
OPS = ("reference", "cpu") if library.why_not_loaded() is None else ("reference",)


def test_the_scale_is_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps taken and steps that overflow, past the point where it grows, against torch.amp.GradScaler."""
    assert (
        torch.amp.GradScaler("cpu").get_scale(),
        torch.amp.GradScaler("cpu").get_growth_interval(),
    ) == (FIRST, GROWTH)
    monkeypatch.setattr(amp, "GROWTH", 20)
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.SGD([weight], lr=0.0)
    theirs = torch.amp.GradScaler("cpu", growth_interval=20)
    ours, told = LossScale(CPU), []
    for step in range(60):
        overflows = step in (3, 4, 50)
        told.append(theirs.get_scale())
        assert float(ours.value) == told[-1], step
        weight.grad = torch.full((3,), math.inf if overflows else 2.0) * told[-1]
        theirs.scale(torch.ones(()))
        theirs.unscale_(optimiser)
        theirs.step(optimiser)
        theirs.update()
        gradient = torch.full((3,), 2.0) * ours.value
        ours.unscale([gradient])
        assert torch.equal(gradient, torch.full((3,), 2.0))
        ours.update(torch.tensor(overflows), torch.tensor(overflows))
    assert told[0] == told[46] == FIRST and min(told) == FIRST / 4 and told[-1] == FIRST / 2
    other = LossScale(CPU)
    other.load_state(ours.state())
    assert torch.equal(other.value, ours.value) and torch.equal(other.taken, ours.taken)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ops", OPS)
def test_a_scaled_step_is_the_same(ops: str, accumulate: int) -> None:
    """In float32 a power of two changes no bit of weights, momenta and losses."""
    nets, losses = [], []
    for scale in (None, LossScale(CPU)):
        net = random_network(channels=16, layers=4).train().use_ops(ops)
        optimiser = make_optimiser(net, OptimiserConfig())
        images, labels = (
            random_images(2, 64, 64),
            torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(1)),
        )
        for _ in range(2):
            losses.append(train_step(net, optimiser, images, labels, 0.0, None, 5.0, None, accumulate, scale=scale))
        nets.append(net)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values()))
    assert torch.equal(losses[1]["segmentation"], losses[3]["segmentation"])
    assert not losses[3].skipped and not losses[3].overflowed and scale is not None and int(scale.taken) == 2


def test_what_is_not_finite() -> None:
    """A gradient that overflows halves the scale; a loss that is NaN leaves it alone. Neither moves a weight."""
    net = random_network(channels=16, layers=4).train()
    optimiser, scale = make_optimiser(net, OptimiserConfig()), LossScale(CPU)
    images, labels = random_images(2, 64, 64), torch.randint(0, 5, (2, 64, 64))
    before = copy.deepcopy(net.state_dict())
    bad = images.clone()
    bad[0, 0, 0, 0] = math.nan
    losses = train_step(net, optimiser, bad, labels, 0.0, None, 5.0, scale=scale)
    assert losses.skipped and not losses.overflowed and float(scale.value) == FIRST
    next(net.parameters()).register_hook(lambda gradient: gradient * math.inf)
    losses = train_step(net, optimiser, images, labels, 0.0, None, 5.0, scale=scale)
    assert losses.skipped and losses.overflowed and losses["segmentation"].isfinite()
    assert float(scale.value) == FIRST / 2 and int(scale.taken) == 0
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items() if "num_batches" not in name)


def test_the_floor() -> None:
    scale = LossScale(CPU)
    for step in range(17):
        scale.check(step)
        scale.update(torch.tensor(True), torch.tensor(True))
    with pytest.raises(ConfigError, match=r"step 17: the loss scale of float16 has fallen to 0.5, below 1: .*bfloat16"):
        scale.check(17)


def test_a_run_with_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps that overflow are counted apart, end no run and hold no checkpoint back; it goes on bit for bit. (On a
    CPU, where the trainer refuses float16, in float32.)"""
    monkeypatch.setattr(loop, "check_amp", lambda *_: None)
    monkeypatch.setitem(amp.TYPES, "float16", None)
    real = LossScale.unscale

    def unscale(self: LossScale, gradients: list[torch.Tensor]) -> None:
        real(self, gradients)
        if self.value > FIRST / 4:
            gradients[0].fill_(math.inf)

    monkeypatch.setattr(LossScale, "unscale", unscale)
    options = ("run.amp=float16", "run.max_skipped=1", "run.checkpoint_every=2", "run.log_every=2", "train.ema=0.5")

    def records(run: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return [{**line, "seconds": 0} for line in lines if "alarm" not in line]

    whole = train(small(tmp_path / "whole", *options), quiet=True)
    told = [record for record in records(whole) if "overflowed" in record]
    assert [record["skipped"] for record in told] == [0] * 4 and told[0]["overflowed"] == 2 and "loss" not in told[0]
    assert told[-1]["overflowed"] == 0 and told[-1]["loss_scale"] == FIRST / 4
    state = Checkpoints(whole).read()[0]
    (whole / "checkpoints/step-0000008.pt").unlink()
    expected = records(whole)
    train(small(whole, *options), resume=True, quiet=True)
    again = Checkpoints(whole).read()[0]
    assert records(whole) == expected and torch.equal(again["scale"]["value"], state["scale"]["value"])
    assert all(torch.equal(state[part][name], again[part][name]) for part in ("model", "ema") for name in state[part])


def test_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What YAML makes of the word off; float16 on a CPU; another type on the way."""
    assert load_config("scenes_quick", ["run.amp=off"]).run.amp == "off"
    load_config("scenes_quick", ["run.amp=bfloat16"]).save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").run.amp == "bfloat16"
    with pytest.raises(ConfigError, match=r"run.amp: float16 wanted a GPU, this run is on cpu.*; bfloat16 runs here"):
        train(small(tmp_path / "run", "run.amp=float16", "run.device=cpu"), quiet=True)
    assert not (tmp_path / "run").exists()
    run = train(small(tmp_path / "run", "run.amp=bfloat16", "schedule.steps=2"), quiet=True)
    capsys.readouterr()
    train(small(run, "schedule.steps=3", "optimiser.lr=0.01"), resume=True, quiet=True)
    said = capsys.readouterr().err
    assert "train: run.amp is off instead of bfloat16 from step 2 on, which rounds otherwise" in said
    assert "train: optimiser.lr is 0.01 instead of 0.05 from step 2 on; the learning rate there is" in said
    state = Checkpoints(run).read()[0]
    state["config"]["run"] = {"bf16": True, **{k: v for k, v in state["config"]["run"].items() if k != "amp"}}
    Checkpoints(run).write(state)  # of an older version
    train(small(run, "schedule.steps=4", "run.amp=bfloat16", "optimiser.lr=0.01"), resume=True, quiet=True)
    assert "run.amp" not in capsys.readouterr().err
