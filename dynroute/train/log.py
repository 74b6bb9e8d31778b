"""What a run tells while it goes: a progress bar, TensorBoard, and one JSON record each log interval."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dynroute.data import IGNORE
from dynroute.files import finite, named, write_whole
from dynroute.measure.alarms import Alarm
from dynroute.measure.metrics import confusion_matrix, scores
from dynroute.train.processes import Team
from dynroute.train.watch import Watch

# mIoU of training batches is smoothed over about this many steps.
MIOU_WINDOW = 100
# It is of the network's logits at 1/4 size, as the rest is interpolation, so that training makes none at full size.
# Low-resolution pixel i covers pixels 4i..4i + 3, and of these 4i + 1 and 4i + 2 lie nearest to its centre.
MIOU_STRIDE, MIOU_OFFSET = 4, 2
# Values of this beginning are work, which a skipped step does too; sums of all processes.
WORK = "executed"


class TrainingLog:
    """Gathers values of steps and writes their means every `every` steps.

    Values stay tensors until a record is written, so that a GPU is not waited for at each step. With several processes
    each has a log, which holds what all found; only the first one's writes. Steps that were skipped count in no mean
    but that of work; records say how many there were.
    """

    def __init__(
        self,
        folder: Path,
        num_classes: int,
        every: int,
        steps: int,
        start: int,
        quiet: bool = False,
        team: Team | None = None,
        size: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Of records that are there, those up to step `start` stay, and of these what lies in the first `size` bytes
        (None: all): a resumed run writes the others again."""
        self.path, self.team, self.board = folder / "log.jsonl", team, folder / "tb"
        self.writer: SummaryWriter | None = None
        if team is None or team.leads:
            _keep_records(self.path, start, size)
            with named(self.board):
                self.writer = SummaryWriter(str(self.board), purge_step=start + 1)  # of an attempt before
        quiet = quiet or self.writer is None
        self.bar = tqdm(total=steps, initial=start, desc=folder.name, unit="step", disable=quiet, dynamic_ncols=True)
        self.every, self.num_classes, self.watch = every, num_classes, watch
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self._elapsed, self._since = 0.0, time.perf_counter()

    @torch.no_grad()
    def step(
        self,
        step: int,
        rate: float,
        values: dict[str, Tensor],
        low_logits: Tensor,
        labels: Tensor,
        skipped: Tensor | None = None,
        gates: Tensor | None = None,
        overflowed: Tensor | None = None,
    ) -> None:
        """Take in step number `step` (1 after the first): scalars `values`, labels [N, H, W], logits at 1/4 size.

        low_logits: [N, K, h, w], at the top left of them what belongs to the labels, behind it what belongs to padding.
        skipped: bool scalar, whether the step was; None: it was not.
        gates: [N, L+1, 4, 3], for the watch.
        overflowed: bool scalar, whether it was skipped as float16's scale was too large, which is counted apart.

        Raises OSError, with the file's name, when a record cannot be written.
        """
        sampled = labels[..., MIOU_OFFSET::MIOU_STRIDE, MIOU_OFFSET::MIOU_STRIDE]
        kept = torch.where(sampled < self.num_classes, sampled, IGNORE)
        predicted = low_logits.detach()[..., : kept.shape[-2], : kept.shape[-1]].argmax(1)
        counts = confusion_matrix(predicted, kept, self.num_classes)
        if self.team is not None and self.team.size > 1:
            values, counts = _of_all(self.team, values, counts)
        if skipped is not None:
            values = {
                key: value if key.startswith(WORK) else torch.where(skipped, 0.0, value.detach().double())
                for key, value in values.items()
            }
            values["skipped"] = skipped
        if overflowed is not None:
            values["overflowed"] = overflowed
        for key, value in values.items():
            value = value.detach().double()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._count += 1
        if self.watch is not None and gates is not None:
            self.watch.step(gates, skipped)
        before = self._confusion.to(counts.device)
        after = before * (1 - 1 / MIOU_WINDOW) + counts
        self._confusion = after if skipped is None else torch.where(skipped, before, after)
        self.bar.update()
        if step % self.every == 0:
            self._write(step, rate)

    def event(self, step: int, **values: Any) -> None:
        """Write a record of its own, such as an evaluation's."""
        if self.writer is None:
            return
        self._append({"step": step, **values})
        with named(self.board):
            for key, value in finite(values).items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(key, value, step)
            self.writer.flush()

    def alarm(self, step: int, state: str, alarm: Alarm) -> None:
        """Tell of an alarm: a record, a line on stderr, a text in TensorBoard.

        state: whether it "began" in training, or is one of the "evaluation" at the end.
        """
        self._tell(step, {"state": state, **alarm.to_json()}, f"{alarm.severity} alarm: {alarm}")

    def _tell(self, step: int, alarm: dict[str, Any], text: str) -> None:
        if self.writer is None:
            return
        self.event(step, alarm=alarm)
        tqdm.write(f"train: step {step}: {text}", file=sys.stderr)
        with named(self.board):
            self.writer.add_text(f"alarms/{alarm['kind']}", text, step)
            self.writer.flush()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the records after it to be those of an uninterrupted run."""
        seconds = self._elapsed + time.perf_counter() - self._since
        size = self.path.stat().st_size if self.path.is_file() else 0
        return {
            "sums": self._sums,
            "count": self._count,
            "confusion": self._confusion,
            "seconds": seconds,
            "size": size,
            "watch": self.watch.state() if self.watch is not None else None,
        }

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back what `state` returned."""
        self._sums = {key: value.to(device) for key, value in state["sums"].items()}
        self._count, self._confusion = state["count"], state["confusion"].to(device)
        self._elapsed, self._since = state["seconds"], time.perf_counter()
        if self.watch is not None and state.get("watch") is not None:  # it may be older
            self.watch.load_state(state["watch"], device)

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            with named(self.board):
                self.writer.close()

    def _write(self, step: int, rate: float) -> None:
        sums = {key: float(value) for key, value in self._sums.items()}
        skipped = int(sums.pop("skipped", 0))
        overflowed = int(sums.pop("overflowed")) if "overflowed" in sums else None
        taken = self._count - skipped
        counts = {key: self._count if key.startswith(WORK) else taken for key in sums}
        means = {key: value / counts[key] for key, value in sums.items() if counts[key]}
        self._sums, self._count = {}, 0
        of_routes, changes = self.watch.look(step, means) if self.watch is not None else ({}, [])
        if self.writer is None:
            return
        means["miou"] = scores(self._confusion).miou
        seconds = self._elapsed + time.perf_counter() - self._since
        shown = {"lr": rate, **means, **of_routes, "skipped": skipped - (overflowed or 0)}
        if overflowed is not None:
            shown["overflowed"] = overflowed
        self._append({"step": step, **shown, "seconds": round(seconds, 3)})
        with named(self.board):
            for key, value in finite(shown).items():
                if value is not None:
                    self.writer.add_scalar(f"train/{key}", value, step)
        words = {"loss": "loss", "miou": "mIoU", "expected_share": "expected", "real_share": "real"}
        told = [f"{word} {means[key]:.3f}" for key, word in words.items() if key in means]
        self.bar.set_postfix_str(" ".join([*told, f"skipped {shown['skipped']}"] if shown["skipped"] else told))
        for change in changes:
            if change.alarm is not None:
                self.alarm(step, "began", change.alarm)
            else:
                ended = {"state": "ended", "kind": change.kind, "since": change.since}
                self._tell(step, ended, f"the alarm {change.kind} of step {change.since} has ended")

    def _append(self, record: dict[str, Any]) -> None:
        """A whole record, or none."""
        size = self.path.stat().st_size if self.path.is_file() else 0
        try:
            with named(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(finite(record), allow_nan=False) + "\n")
        except OSError:
            if self.path.is_file():
                os.truncate(self.path, size)
            raise


def _of_all(team: Team, values: dict[str, Tensor], counts: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Of all processes: values' means, sums of what was executed, sums of counts; one transfer."""
    own = torch.stack([value.detach().double().to(counts.device) for value in values.values()])
    total = team.sum(torch.cat([own, counts.double().flatten()]))
    joint = {}
    for name, value in zip(values, total):
        joint[name] = value if name.startswith(WORK) else value / team.size
    return joint, total[len(own) :].view(counts.shape)


def _keep_records(path: Path, last: int, size: int | None) -> None:
    """Drop records after step `last` or behind the first `size` bytes."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes()[:size].decode("utf-8", "replace").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a crash
    write_whole(path, "".join(f"{line}\n" for line in kept))
