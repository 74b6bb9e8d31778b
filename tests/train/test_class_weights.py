"""Factors of classes in the loss: rules, the mean they are in, operators, parts, processes, runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

import dynroute
from dynroute.native import library
from dynroute.train import ConfigError, train
from dynroute.train.class_weights import class_weights
from dynroute.train.processes import in_parallel
from dynroute.train.step import train_step
from tests.support.networks import random_images, random_network
from tests.support.ranks import together
from tests.support.runs import small

OPS = ("reference", "cpu") if library.why_not_loaded() is None else ("reference",)
WEIGHTS = torch.tensor([0.5, 1.0, 0.0, 2.0, 7.0])


class Labels:
    """A source of these labels."""

    def __init__(self, *labels: list[int]) -> None:
        self.labels = [np.array([row], dtype=np.uint8) for row in labels]
        self.class_names = ["a", "b", "c"]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((*self.labels[index].shape, 3), np.uint8), self.labels[index]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # 6 of 8 labelled pixels are a, 2 are c, b does not occur: 1/p is 4/3 and 4, their mean 8/3
        ("balanced", [0.5, 1.0, 1.5]),
        ("enet", [1 / math.log(1.02 + 0.75), 1.0, 1 / math.log(1.02 + 0.25)]),
        ((1.0, 2.0, 0.0), [1.0, 2.0, 0.0]),
    ],
)
def test_rules(rule: Any, expected: list[float]) -> None:
    assert class_weights(rule, Labels([0, 0, 0, 0, 255], [2, 0, 0, 2, 255])) == pytest.approx(expected)


def test_errors() -> None:
    with pytest.raises(ConfigError, match=r"train.class_weights: wanted 3 numbers, one for each class, got 2"):
        class_weights([1.0, 2.0], Labels([0]))
    with pytest.raises(ConfigError, match="balanced: no pixel of the training split is labelled"):
        class_weights("balanced", Labels([255, 255]))


def batch() -> tuple[Tensor, Tensor]:
    labels = torch.randint(0, 5, (4, 32, 32), generator=torch.Generator().manual_seed(1))
    labels[0, 7:] = labels[3, :, 5:] = 255
    labels[1] = labels[1].clamp(max=3)
    return random_images(4, 32, 32).double(), labels


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_the_loss_is_torchs(ops: str, scale: float) -> None:
    """Its mean is weighted too, so that a common factor changes nothing."""
    net = random_network(layers=4, channels=16).train().double().use_ops(ops)
    images, labels = batch()
    losses = dynroute.objective(net, images, labels, 0.5, class_weights=WEIGHTS * scale)
    wanted = F.cross_entropy(losses.output.logits, labels, WEIGHTS.double(), ignore_index=255)
    torch.testing.assert_close(losses["segmentation"], wanted, rtol=1e-8, atol=0)
    assert losses["segmentation"].dtype == torch.float64


@pytest.mark.parametrize("ops", OPS)
def test_only_classes_that_count_nothing(ops: str) -> None:
    net = random_network(layers=4, channels=16).train().use_ops(ops)
    images, labels = batch()
    losses = dynroute.objective(net, images.float(), torch.full_like(labels, 2), 0.5, class_weights=WEIGHTS)
    losses["segmentation"].backward()
    assert losses["segmentation"] == 0 and all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def stepped(ops: str, accumulate: int, rank: int = 0, processes: int = 1) -> dict[str, Tensor]:
    """A step, and its gradients: of which BatchNorm, frozen, makes no difference between parts and the whole."""
    net = random_network(layers=4, channels=16).train().double().use_ops(ops).freeze("stem", "grid.1")
    net.bn = "frozen"
    images, labels = (of.chunk(processes)[rank] for of in batch())
    model: Any = net
    if processes > 1:
        net.synchronise(dist.new_group().group_name)
        model = in_parallel(net, torch.device("cpu"))
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.0)
    losses = train_step(model, optimiser, images, labels, 0.5, None, 1e9, accumulate=accumulate, class_weights=WEIGHTS)
    assert all(p.grad is not None for p in trained)
    return {
        "loss": losses["segmentation"].detach(),
        **{name: p.grad for name, p in net.named_parameters() if p.grad is not None},
    }


def steps(rank: int, processes: int) -> list[dict[str, Tensor]]:
    return [stepped(ops, accumulate, rank, processes) for ops, accumulate in ((OPS[0], 1), (OPS[-1], 2))]


def check_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    largest = max(value.abs().max().item() for value in wanted.values())
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-9 * largest)


def test_parts_and_processes_make_one_step(tmp_path: Path) -> None:
    """With frozen parts beside it: no process waits for their gradients."""
    wanted = stepped("reference", 1)
    for ops in OPS:
        for accumulate in (2, 4):
            check_same(stepped(ops, accumulate), wanted)
    for rank in together(steps, 2, tmp_path / "ranks"):
        for got in rank:
            check_same(got, wanted)


def test_a_run_says_keeps_and_goes_on_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["train.class_weights=balanced", "schedule.steps=4", "run.checkpoint_every=2", "data.scenes_train=4",
               "evaluation.precise_bn_batches=0", "data.scenes_val=2"]  # fmt: skip
    folder = train(small(tmp_path / "run", *options), quiet=True)
    assert "train: train.class_weights: ground 0.0" in capsys.readouterr().err
    found = json.loads((folder / "class_weights.json").read_text())
    assert found["rule"] == "balanced" and len(found["weights"]) == 7
    assert sum(found["weights"].values()) == pytest.approx(7)
    listed = train(small(tmp_path / "listed", f"train.class_weights={[*found['weights'].values()]}", *options[1:]))
    plain = train(small(tmp_path / "plain", *options[1:]), quiet=True)
    losses = [
        [json.loads(line).get("segmentation") for line in (run / "log.jsonl").read_text().splitlines()]
        for run in (folder, listed, plain)
    ]
    assert losses[0] == losses[1] and losses[0][0] != losses[2][0]
    # going on reads them from the checkpoint
    for path in (folder / "checkpoints").glob("step-0000004*"):
        path.unlink()
    before = json.loads((folder / "eval.json").read_text())["miou"]
    capsys.readouterr()
    train(small(folder, *options), resume=True, quiet=True)
    assert "class_weights" not in capsys.readouterr().err
    assert json.loads((folder / "eval.json").read_text())["miou"] == before
