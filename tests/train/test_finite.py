"""What is not finite: skipped, counted, stopped at, and in no file."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dynroute
from dynroute.files import finite
from dynroute.native import library
from dynroute.objective import Losses
from dynroute.train import ConfigError, finish, loop, train
from dynroute.train import step as step_module
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.config import OptimiserConfig
from dynroute.train.finite import SkipLimit, check_finite, running_statistics, step_unless
from dynroute.train.optimiser import make_optimiser
from dynroute.train.step import train_step
from tests.support.networks import random_images, random_network
from tests.support.runs import small

OPS = ("reference", "cpu") if library.why_not_loaded() is None else ("reference",)
NAN, INF = math.nan, math.inf


def strict(line: str) -> Any:
    def no(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(line, parse_constant=no)


def log_of(run: Path) -> list[dict[str, Any]]:
    """Without alarms."""
    records = [strict(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if "alarm" not in record]


def state_of(net: torch.nn.Module, optimiser: torch.optim.Optimizer) -> list[Tensor]:
    momenta = [optimiser.state[p]["momentum_buffer"] for p in net.parameters()]
    buffers = [b for b in net.buffers() if b.is_floating_point()]
    return [t.detach().clone() for t in (*net.parameters(), *momenta, *buffers)]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("ops", OPS)
def test_a_skipped_step_is_none(ops: str, first: bool, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad pixel, a bad gradient: weights, momenta and statistics keep every bit; and the next step is as if it had
    not been."""
    net = random_network(channels=16, layers=4).train().use_ops(ops)
    optimiser = make_optimiser(net, OptimiserConfig())
    images, labels = random_images(2, 64, 64), torch.randint(0, 5, (2, 64, 64))

    def step(net: Any, optimiser: Any, images: Tensor) -> Losses:
        return train_step(net, optimiser, images, labels, 0.0, None, 5.0, accumulate=accumulate)

    if not first:
        assert not step(net, optimiser, images).skipped
    twin = copy.deepcopy(net)
    other = make_optimiser(twin, OptimiserConfig())
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    before = state_of(net, optimiser)

    bad = images.clone()
    bad[1, 0, 30, 30] = NAN
    assert step(net, optimiser, bad).skipped
    weight = next(net.parameters())
    handle = weight.register_hook(lambda gradient: gradient * INF)  # a loss that is finite, a gradient that is not
    losses = step(net, optimiser, images)
    handle.remove()
    assert losses.skipped and losses["segmentation"].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(net, optimiser)))

    assert not step(net, optimiser, images).skipped and not step(twin, other, images).skipped
    after = state_of(net, optimiser)
    assert all(torch.equal(a, b) for a, b in zip(after, state_of(twin, other)))
    assert not all(torch.equal(a, b) for a, b in zip(after, before))


def test_as_on_a_gpu() -> None:
    """The fused optimiser is told as on a GPU, by a number on the device: nothing moves, from the first step on."""
    net = random_network(channels=16, layers=4).train()
    optimiser = make_optimiser(net, OptimiserConfig())
    before = state_of(net, optimiser)
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, NAN)

    class OnDevice(Tensor):
        is_cuda = True

    step_unless(torch.tensor(True).as_subclass(OnDevice), optimiser)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(net, optimiser)))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    step_unless(torch.tensor(False).as_subclass(OnDevice), optimiser)
    after = state_of(net, optimiser)
    assert all(t.isfinite().all() for t in after) and not torch.equal(before[0], after[0])
    assert not hasattr(optimiser, "found_inf")


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: float = NAN) -> None:
    """The loss of these steps (1 is the first) is NaN."""
    real, taken = step_module.objective, []

    def objective(*arguments: Any, **options: Any) -> Losses:
        taken.append(1)
        losses = real(*arguments, **options)
        if len(taken) in steps:
            losses["segmentation"] = losses["segmentation"] * factor
        return losses

    monkeypatch.setattr(step_module, "objective", objective)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("factor", [NAN, INF])
def test_single_steps_are_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, every: int
) -> None:
    spoil(monkeypatch, {1, 4, 5}, factor)
    run = train(small(tmp_path / "run", f"run.log_every={every}", "schedule.steps=9"), quiet=True)
    records = log_of(run)[:-1]
    if every == 1:
        assert [r["skipped"] for r in records] == [1, 0, 0, 1, 1, 0, 0, 0, 0]
        assert [("loss" in r) for r in records] == [not r["skipped"] for r in records]
    else:
        assert [r["skipped"] for r in records] == [1, 2, 0]
        assert all(r["loss"] == pytest.approx(r["segmentation"] + r["budget"], rel=1e-6) for r in records)
    weights = dynroute.from_pretrained(run / "model").state_dict().values()
    assert all(w.isfinite().all() for w in weights if w.is_floating_point())
    assert strict((run / "eval.json").read_text())["miou"] is not None


def test_too_many_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that may be why are not saved: the checkpoint waits for a step that is none of these, as does Ctrl-C."""
    config = small(tmp_path / "run", "run.max_skipped=3", "schedule.steps=12", "run.log_every=4")
    checkpoints = Checkpoints(tmp_path / "run")
    with monkeypatch.context() as patch:
        spoil(patch, {3, 4, 7, 8, 9})
        with pytest.raises(ConfigError, match=r"step 9: the last 3 steps were skipped.*optimiser.lr may help"):
            train(config, quiet=True)
    assert checkpoints.read()[0]["step"] == 5 and not (tmp_path / "run/eval.json").exists()
    with monkeypatch.context() as patch:
        spoil(patch, {3, 4})
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 10"):
            train(config, resume=True, quiet=True)
    assert checkpoints.read()[0]["step"] == 10
    with monkeypatch.context() as patch:
        spoil(patch, {2})
        with pytest.raises(ConfigError, match=r"step 12: the last 1 steps were skipped.*change schedule.steps"):
            train(config, resume=True, quiet=True)
    assert checkpoints.read()[0]["step"] == 10
    train(config, resume=True, quiet=True)
    assert [r["skipped"] for r in log_of(tmp_path / "run")[:-1]] == [2, 1, 1]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    real, taken = loop.train_step, []

    def step(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if len(taken) == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step)


@pytest.mark.parametrize("where", ["weight", "statistic", "momentum"])
def test_no_such_state_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Whatever made it so, between two steps: here of a node that may be closed, or seen by no loss."""
    real, taken = loop.train_step, []

    def step(net: Any, optimiser: Any, *arguments: Any, **options: Any) -> Losses:
        taken.append(1)
        losses = real(net, optimiser, *arguments, **options)
        if len(taken) == 8:
            parameter = list(net.parameters())[-1]
            spoiled = {
                "weight": parameter,
                "statistic": running_statistics(net)[-1],
                "momentum": optimiser.state[parameter]["momentum_buffer"],
            }[where]
            with torch.no_grad():
                spoiled.view(-1)[0] = NAN
        return losses

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(ConfigError, match=r"step 8: .* is not finite.*not saved, the checkpoint before stays"):
        train(small(tmp_path / "run"), quiet=True)
    assert Checkpoints(tmp_path / "run").read()[0]["step"] == 4
    assert {path.name for path in (tmp_path / "run/checkpoints").iterdir()} == {"step-0000004.pt", "step-0000004.json"}


def test_a_rate_that_is_far_too_high(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optimiser.lr may help"):
        train(small(tmp_path / "run", "optimiser.lr=1e30", "optimiser.clip_norm=1e30"), quiet=True)
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    log_of(tmp_path / "run")


def test_evaluations_are_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs or alphas that are not finite become null."""
    real = finish.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        result.costs["real_mflops"] = NAN
        result.gates.mean_alpha[0][0][0] = -INF
        return result

    monkeypatch.setattr(finish, "evaluate", evaluate)
    run = train(small(tmp_path / "run", "schedule.steps=2"), quiet=True)
    report = strict((run / "eval.json").read_text())
    assert report["real_mflops"] is None and report["gates"]["mean_alpha"][0][0][0] is None
    assert log_of(run)[-1]["val_real_mflops"] is None
    assert finite({"a": (NAN, 1.0, [INF]), 2: Path("x"), "t": True}) == {"a": [None, 1.0, [None]], "2": "x", "t": True}


def test_limit_and_check() -> None:
    limit = SkipLimit(2, torch.device("cpu"))
    for skipped in (True, False, True):
        limit.count(torch.tensor(skipped), torch.tensor(False))
    limit.check(3, ends=False)
    with pytest.raises(ConfigError, match="step 3: the last 1 steps"):
        limit.check(3, ends=True)
    limit.count(torch.tensor(True), torch.tensor(True))  # float16's scale was too large: neither bad nor good
    limit.check(4, ends=False)
    limit.count(torch.tensor(True), torch.tensor(False))
    with pytest.raises(ConfigError, match="step 5: the last 2 steps"):
        limit.check(5, ends=False)
    net = random_network(channels=16, layers=4)
    optimiser = make_optimiser(net, OptimiserConfig())
    check_finite(net, optimiser, 1)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = INF
    with pytest.raises(ConfigError, match=next(name for name, _ in net.named_parameters())):
        check_finite(net, optimiser, 1)
