"""A training step as a CUDA graph, on a GPU: the same bits as without."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dynroute
from dynroute.native import library
from dynroute.train import recorded as module
from dynroute.train import train
from dynroute.train.amp import GROWTH, LossScale
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.config import OptimiserConfig
from dynroute.train.ema import WeightAverage
from dynroute.train.optimiser import make_optimiser, set_learning_rate
from dynroute.train.recorded import RecordedStep
from dynroute.train.surroundings import CUBLAS, CUBLAS_CHOICES
from tests.support.networks import random_images, random_network
from tests.support.runs import small

pytestmark = pytest.mark.skipif(library.why_not_cuda() is not None, reason=str(library.why_not_cuda()))
BUDGET = dynroute.Budget(0.5, 0.4, start=0.5, ramp=0.3)
STEPS = 10


def trained(
    net: Any, budget: dynroute.Budget, amp: torch.dtype | None, sides: list[int]
) -> tuple[list[Tensor], RecordedStep]:
    """Losses of steps on batches of these sizes, and weights and statistics behind them."""
    net = copy.deepcopy(net).cuda().train().to(memory_format=torch.channels_last)
    torch.manual_seed(5)
    optimiser = make_optimiser(net, OptimiserConfig())
    step, found = RecordedStep(net, optimiser, budget, 5.0, amp), []
    for i, side in enumerate(sides):
        images = random_images(2, side, side, seed=i).cuda().contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 5, (2, side, side), generator=torch.Generator().manual_seed(i)).cuda()
        set_learning_rate(optimiser, 0.01 * (i + 1))
        found += list(step(images, labels, i / len(sides)).values())
    return [*found, *net.state_dict().values()], step


@pytest.mark.parametrize("ops", ["auto", "reference"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sides", [[64] * STEPS, [64, 96] * STEPS], ids=["one size", "two sizes"])
def test_recorded_is_the_same(
    ops: str, amp: torch.dtype | None, sides: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning rate, drop path and the budget's weight change from step to step."""
    module_warmup = module.WARMUP
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    net = random_network(channels=16, layers=4, drop_prob=0.4).use_ops(ops)
    with_graph, step = trained(net, BUDGET, amp, sides)
    assert len(step.recordings) == len(set(sides))
    monkeypatch.setattr(module, "WARMUP", len(sides))
    without, step = trained(net, BUDGET, amp, sides)
    assert not step.recordings
    if ops == "auto":
        assert all(torch.equal(a, b) for a, b in zip(with_graph, without, strict=True))
    else:  # PyTorch's operators add up in another order each time, and steps drift apart
        recorded = 2 * (len(set(sides)) * module_warmup + 2)  # two losses a step
        assert all(torch.allclose(a, b, rtol=0.05) for a, b in zip(with_graph[:recorded], without[:recorded]))


def test_class_weights_and_frozen_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 64, 64).cuda().contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(1)).cuda()
    labels[0, :9] = 255
    found = []
    for warmup in (module.WARMUP, STEPS):
        monkeypatch.setattr(module, "WARMUP", warmup)
        net = random_network(channels=16, layers=4).use_ops("auto").cuda().freeze("stem", "grid.1", "grid.2.0.cell")
        net = net.train().to(memory_format=torch.channels_last)
        before = copy.deepcopy(net.stem.state_dict())
        weights = torch.tensor([0.5, 1.0, 0.0, 2.0, 7.0], device="cuda")
        step = RecordedStep(net, make_optimiser(net, OptimiserConfig()), BUDGET, 5.0, class_weights=weights)
        losses = [step(images, labels, 0.5)["segmentation"] for _ in range(STEPS)]
        assert len(step.recordings) == (warmup < STEPS)
        assert all(torch.equal(value, before[name]) for name, value in net.stem.state_dict().items())
        found.append([*losses, *net.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("ops", ["auto", "reference"])
@pytest.mark.parametrize("bad", [0, module.WARMUP + 3], ids=["as it is", "recorded"])
def test_a_skipped_step_moves_nothing(ops: str, bad: int) -> None:
    """Found on the device: weights, momenta and statistics keep every bit, and the next step is one again."""
    net = random_network(channels=16, layers=4).use_ops(ops).cuda().train().to(memory_format=torch.channels_last)
    optimiser = make_optimiser(net, OptimiserConfig())
    step = RecordedStep(net, optimiser, None, 5.0)
    images = random_images(2, 64, 64).cuda().contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (2, 64, 64), device="cuda")

    def state() -> list[Tensor]:
        tensors = [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
        return [
            t.detach().clone() for t in (*tensors, *(optimiser.state[p]["momentum_buffer"] for p in net.parameters()))
        ]

    for i in range(module.WARMUP + 6):
        given, before = images.clone(), state()
        if i == bad:
            given[1, 0, 3, 3] = float("nan")
        skipped = step(given, labels, 0.0).skipped
        assert skipped.is_cuda and bool(skipped) == (i == bad)
        kept = [torch.equal(a, b) for a, b in zip(before, state())]
        assert all(kept) if i == bad else not all(kept)
        assert all(t.isfinite().all() for t in state())
    assert step.recordings


def test_steps_with_a_bridge_are_not_recorded() -> None:
    net = random_network(channels=16, layers=4)
    budget = dynroute.Budget(0.5, 0.4, bridge=1.0, start=0.0, bridge_end=1.0)
    assert not trained(net, budget, None, [64] * 6)[1].recordings


@pytest.mark.parametrize("bad", [0, module.WARMUP + 3], ids=["as it is", "recorded"])
def test_the_scale_of_float16(bad: int) -> None:
    """Halved on the device by a gradient that overflows, doubled after GROWTH steps; the average leaves out what was
    skipped."""
    net = random_network(channels=16, layers=4).cuda().train().to(memory_format=torch.channels_last).use_ops("auto")
    scale, average = LossScale(torch.device("cuda")), WeightAverage(net, 0.9)
    step = RecordedStep(net, make_optimiser(net, OptimiserConfig()), None, 5.0, torch.float16, scale=scale)
    images = random_images(2, 64, 64).cuda().contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 5, (2, 64, 64), device="cuda")
    for i in range(module.WARMUP + 6):
        before = [t.clone() for t in average.state().values()]
        scale.value.fill_(2.0**120 if i == bad else 2.0**10)
        scale.taken.fill_(GROWTH - 1)
        losses = step(images, labels, 0.0)
        average.update(i + 1, losses.skipped)
        assert bool(losses.skipped) == bool(losses.overflowed) == (i == bad) and losses["segmentation"].isfinite()
        assert float(scale.value) == (2.0**119 if i == bad else 2.0**11) and int(scale.taken) == 0
        kept = [torch.equal(a, b) for a, b in zip(before, average.state().values())]
        assert all(kept) if i == bad else not all(kept)
    assert step.recordings


@pytest.mark.parametrize("ops", ["auto", "reference"])
def test_deterministic(tmp_path: Path, ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, the same bits."""
    monkeypatch.setenv(CUBLAS, CUBLAS_CHOICES[0])  # CUDA is at work here already
    settings = ("run.device=cuda", "run.deterministic=true", "model.channels=16", f"run.ops={ops}")
    one, two = (train(small(tmp_path / name, *settings), quiet=True) for name in ("one", "two"))
    states = [Checkpoints(run).read()[0]["model"] for run in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("amp", ["off", "float16"])
def test_a_run_stopped_and_resumed(tmp_path: Path, amp: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer records by itself; a continuation ends where the whole run does."""
    settings = ("run.device=cuda", "model.channels=16", "evaluation.every=4", "train.ema=0.9", f"run.amp={amp}")

    def losses(folder: Path) -> list[float]:
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    whole = train(small(tmp_path / "whole", *settings), quiet=True)
    real, calls = RecordedStep.__call__, []

    def stop(self: RecordedStep, *args: Any) -> Any:
        calls.append(bool(self.recordings))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(RecordedStep, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            train(small(tmp_path / "broken", *settings), quiet=True)
    assert calls[-1], "it should have been recorded"
    train(small(tmp_path / "broken", *settings), resume=True, quiet=True)
    assert losses(tmp_path / "broken") == losses(whole)
