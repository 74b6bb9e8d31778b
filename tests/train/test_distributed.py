"""Several processes against one on the joint batch: gradients, statistics, losses; whole runs, resuming, torchrun."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.objective import IGNORED_LABEL
from dynroute.train import ConfigError, loop, train
from dynroute.train.checkpoint import Checkpoints
from dynroute.train.processes import in_parallel
from dynroute.train.step import logged, train_step
from tests.support.networks import random_images, random_network
from tests.support.processes import ROOT
from tests.support.ranks import together
from tests.support.runs import small

N, LAYERS = 6, 4  # N: of the joint batch
KERNELS = library.why_not_loaded() is None
OPS = ("reference", "cpu") if KERNELS else ("reference",)


class Case(NamedTuple):
    ops: str
    bn: str
    routes: str | None = None
    """None: the gates' own."""
    joined: bool = True
    """BatchNorms see all processes' samples."""
    budget: bool = False
    """Costs are float32, as the gates are."""
    images: int = N
    parts: int = 1
    """Of a process's share."""
    drop: bool = False
    """Drop path, whose draws are of the whole batch."""


CASES = [
    *(Case(ops, bn) for ops in OPS for bn in ("all", "open")),
    *(Case(OPS[-1], bn, routes) for bn in ("open", "frozen") for routes in ("random", "first", "none")),
    Case("reference", "open", "first"),
    Case(OPS[-1], "all", "first"),
    Case(OPS[-1], "all", budget=True),
    Case(OPS[-1], "all", drop=True),
    Case(OPS[-1], "all", joined=False),
]
PARTS = [Case(OPS[-1], "all", joined=False, images=4, parts=2)]  # of two processes: four parts of one


def network(case: Case, rows: slice) -> DynamicNetwork:
    net = random_network(channels=16, layers=LAYERS, drop_prob=0.5 * case.drop).train().double().use_ops(case.ops)
    net.bn = case.bn
    if case.routes is not None:
        g = torch.Generator().manual_seed(3)
        gates = torch.rand(N, LAYERS + 1, 4, 3, generator=g, dtype=torch.float64) * 0.8 + 0.1
        if case.routes == "random":
            gates = gates * (torch.rand(N, LAYERS + 1, 4, 1, generator=g) < 0.4)
        elif case.routes == "first":  # all other samples are closed everywhere, and with them the last process
            gates[1:] = 0.0
        else:
            gates.zero_()
        for parameter in net.gate_parameters():
            parameter.requires_grad_(False)
        net.forward = partial(net.forward, gates=gates[rows])  # type: ignore[method-assign]
    return net


def stepped(case: Case, rank: int = 0, processes: int = 1, accumulate: int | None = None) -> dict[str, Tensor]:
    """One step at a learning rate of 0: losses, gradients and buffers by name."""
    share = case.images // processes
    rows = slice(rank * share, (rank + 1) * share)
    images = random_images(N, 64, 96).double()[rows]
    labels = torch.randint(0, 5, (N, 64, 96), generator=torch.Generator().manual_seed(1))
    labels[0, 7:] = labels[3, :, 5:] = IGNORED_LABEL  # processes differ in what is labelled
    net = network(case, rows)
    model: Any = net
    if processes > 1:
        if case.joined:
            net.synchronise(dist.new_group().group_name)
        model = in_parallel(net, torch.device("cpu"))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.0)
    budget = dynroute.Budget(0.5, 0.4, measure="real") if case.budget else None
    torch.manual_seed(2)  # the drop path's
    losses = train_step(model, optimiser, images, labels[rows], 0.5, budget, 1e9, accumulate=accumulate or case.parts)
    without = [name for name, p in net.named_parameters() if p.grad is None and p.requires_grad]
    assert not without, f"nothing may be left to look for: {without}"
    assert len(losses.output.gates) == share and logged(losses)["loss"].isfinite()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    buffers = {name: b for name, b in net.named_buffers() if case.joined}
    return {**{k: v.detach() for k, v in losses.items()}, **gradients, **buffers}


def steps(rank: int, processes: int) -> list[dict[str, Tensor]]:
    return [stepped(case, rank, processes) for case in (*CASES, *(PARTS if processes == 2 else ()))]


@pytest.mark.parametrize("processes", [2, 3])
def test_a_step_is_that_of_one_process(tmp_path: Path, processes: int) -> None:
    """Whatever the gates say: processes without an open sample in a node, or in any. Without joined BatchNorms a
    process is a part of an accumulated step."""
    ranks = together(steps, processes, tmp_path / "ranks")
    for k, case in enumerate((*CASES, *(PARTS if processes == 2 else ()))):
        expected = stepped(case, accumulate=1 if case.joined else processes * case.parts)
        # gates and costs are float32, and so are their gradients: times 3 they round otherwise, times 2 they do not
        epsilon = 1e-6 if case.budget or (case.routes is None and processes == 3) else 1e-9
        if case.routes == "none":  # constant maps: 1 / sqrt(eps), twice, times the rounding of gradients that are 0
            epsilon = max(epsilon, 1e-8)
        largest = max(v.abs().max().item() for name, v in expected.items() if name.endswith("weight"))
        for rank in ranks:
            assert rank[k].keys() == expected.keys()
            for name, value in expected.items():
                scale = max(value.abs().max().item(), 1e-2 * largest)
                torch.testing.assert_close(
                    rank[k][name],
                    value,
                    rtol=epsilon,
                    atol=epsilon * scale,
                    msg=lambda m, at=(case, name): f"{at}: {m}",
                )


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("config", [{"layers": 6}, {"small_gate": True}, {"cell": ("sepconv", "dilconv")}], ids=str)
def test_every_parameter_has_a_gradient(ops: str, config: dict[str, Any]) -> None:
    """With every path closed too: `DistributedDataParallel` waits for all of them."""
    net = random_network(gate_shift=-9.0, **{"layers": 4, "channels": 16, **config}).train().use_ops(ops)
    losses = dynroute.objective(net, random_images(2, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64), 0.5)
    losses["segmentation"].backward()
    assert losses.output.gates.max() == 0 and all(p.grad is not None for p in net.parameters())


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def runs(rank: int, processes: int, folder: Path) -> None:
    """A run; one that a signal to the second process ends after step 3, and that is resumed; refusals."""
    options = (
        f"run.ops={OPS[-1]}",
        "evaluation.every=4",
        "optimiser.batch=4",
        "optimiser.accumulate=2",
        "train.ema=0.9",
    )
    train(small(folder / "whole", *options), quiet=True)
    broken = small(folder / "broken", *options)
    real, taken = loop.train_step, []

    def step(*arguments: Any, **options: Any) -> Any:
        taken.append(1)
        if len(taken) == 3 and rank == 1:
            for _ in range(2):  # a scheduler's own, and the one that torchrun hands on
                os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
            train(broken, quiet=True)
    torch.randn(7)
    train(broken, resume=True, quiet=True)
    with pytest.raises(ConfigError, match=r"optimiser.batch: wanted a multiple of 2 processes, got 3"):
        train(small(folder / "odd", "optimiser.batch=3"), quiet=True)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(small(folder / "whole", *options), quiet=True)
    with pytest.raises(ConfigError, match="on elsewhere trains in"):  # which the first process alone looks at
        train(small(folder / "locked", *options), quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "write", full_disk)
        with pytest.raises(OSError, match=r"No space left on device: 'here'"):  # and the first alone writes
            train(small(folder / "full", *options), quiet=True)
    with pytest.MonkeyPatch.context() as patch:
        real_images, seen = loop._stream, []

        def stream(*arguments: Any) -> Any:
            for images, labels in real_images(*arguments):
                seen.append(1)
                if rank == 1 and len(seen) in (2, 3):  # in the second process's share of two batches
                    images[0, 0, 0, 0] = float("nan")
                yield images, labels

        patch.setattr(loop, "_stream", stream)
        train(small(folder / "skips", *options), quiet=True)


def full_disk(*arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "here")


def test_resuming_changes_no_bit(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/lock.json").write_text('{"pid": 1, "host": "elsewhere", "started": null}')
    together(runs, 2, tmp_path / "ranks", tmp_path)
    assert [line["skipped"] for line in records(tmp_path / "skips") if "skipped" in line] == [0, 1, 1, *[0] * 5]
    skipping = dynroute.from_pretrained(tmp_path / "skips/model").state_dict().values()
    assert all(value.isfinite().all() for value in skipping if value.is_floating_point())
    assert records(tmp_path / "broken") == records(tmp_path / "whole")
    one, two = (dynroute.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_torchrun(tmp_path: Path) -> None:
    """The command line in two processes: the losses of one, and one of everything that a run leaves."""
    overrides = ["model.drop_prob=0", "schedule.steps=6", f"run.ops={OPS[-1]}", "evaluation.every=3",
                 "budget.start=0.1", "optimiser.batch=4"]  # fmt: skip
    alone = train(small(tmp_path / "alone", *overrides), quiet=True)
    small(tmp_path / "run", *overrides).save(tmp_path / "config.yaml")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "dynroute", "train"]
    result = tmp_path / "result.json"
    run = subprocess.run(
        [sys.executable, *command, str(tmp_path / "config.yaml"), "--json", str(result)],
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("mIoU") == 1 and json.loads(result.read_text())["images"] == 4
    ours, theirs = records(tmp_path / "run"), records(alone)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    for a, b in zip(ours, theirs):
        for key in a.keys() & {"segmentation", "budget", "loss", "expected_share", "lr"}:
            assert a[key] == pytest.approx(b[key], rel=1e-5), (a["step"], key)
        for key in a.keys() & {"executed_gmacs_forward", "executed_gmacs_backward", "real_share"}:
            assert a[key] == pytest.approx(b[key], rel=1e-3), (a["step"], key)
        if "miou" in a:
            assert a["miou"] == pytest.approx(b["miou"], abs=1e-3)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {path.name for path in alone.iterdir()} and len(list((tmp_path / "run/tb").iterdir())) == 1
