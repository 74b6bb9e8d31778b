"""What a run tells while it goes: a progress bar, TensorBoard, and one JSON record each log interval."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dynroute.data import IGNORE
from dynroute.measure.metrics import confusion_matrix, scores
from dynroute.train.parse import ConfigError
from dynroute.train.processes import Team

# mIoU of training batches is smoothed over about this many steps.
MIOU_WINDOW = 100
# It is of the network's logits at 1/4 size, as the rest is interpolation, so that training makes none at full size.
# Low-resolution pixel i covers pixels 4i..4i + 3, and of these 4i + 1 and 4i + 2 lie nearest to its centre.
MIOU_STRIDE, MIOU_OFFSET = 4, 2


class TrainingLog:
    """Gathers values of steps and writes their means every `every` steps.

    Values stay tensors until a record is written, so that a GPU is not waited for at each step. With several processes
    each has a log, which holds what all found; only the first one's writes.
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
    ) -> None:
        self.path, self.team = folder / "log.jsonl", team
        self.writer: SummaryWriter | None = None
        if team is None or team.leads:
            _keep_records(self.path, start)
            self.writer = SummaryWriter(str(folder / "tb"), purge_step=start if start else None)
        quiet = quiet or self.writer is None
        self.bar = tqdm(total=steps, initial=start, desc=folder.name, unit="step", disable=quiet, dynamic_ncols=True)
        self.every, self.num_classes = every, num_classes
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.float64)
        self._elapsed, self._since = 0.0, time.perf_counter()

    @torch.no_grad()
    def step(self, step: int, rate: float, values: dict[str, Tensor], low_logits: Tensor, labels: Tensor) -> None:
        """Take in step number `step` (1 after the first): scalars `values`, labels [N, H, W], logits at 1/4 size.

        low_logits: [N, K, h, w], at the top left of them what belongs to the labels, behind it what belongs to padding.


        Raises ConfigError when the loss is no longer a number; seen at the next record, not at once.
        """
        sampled = labels[..., MIOU_OFFSET::MIOU_STRIDE, MIOU_OFFSET::MIOU_STRIDE]
        kept = torch.where(sampled < self.num_classes, sampled, IGNORE)
        predicted = low_logits.detach()[..., : kept.shape[-2], : kept.shape[-1]].argmax(1)
        counts = confusion_matrix(predicted, kept, self.num_classes)
        if self.team is not None and self.team.size > 1:
            values, counts = _of_all(self.team, values, counts)
        for key, value in values.items():
            value = value.detach().double()
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        self._count += 1
        self._confusion = self._confusion.to(counts.device) * (1 - 1 / MIOU_WINDOW) + counts
        self.bar.update()
        if step % self.every == 0:
            self._write(step, rate)

    def event(self, step: int, **values: Any) -> None:
        """Write a record of its own, such as an evaluation's."""
        if self.writer is None:
            return
        self._append({"step": step, **values})
        for key, value in values.items():
            if isinstance(value, (int, float)):
                self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for the records after it to be those of an uninterrupted run."""
        seconds = self._elapsed + time.perf_counter() - self._since
        return {"sums": self._sums, "count": self._count, "confusion": self._confusion, "seconds": seconds}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back what `state` returned."""
        self._sums = {key: value.to(device) for key, value in state["sums"].items()}
        self._count, self._confusion = state["count"], state["confusion"].to(device)
        self._elapsed, self._since = state["seconds"], time.perf_counter()

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.close()

    def _write(self, step: int, rate: float) -> None:
        means = {key: float(value) / self._count for key, value in self._sums.items()}
        if means["loss"] != means["loss"]:
            raise ConfigError(f"step {step}: the loss is not a number any more; a lower optimiser.lr may help")
        self._sums, self._count = {}, 0
        if self.writer is None:
            return
        means["miou"] = scores(self._confusion).miou
        seconds = self._elapsed + time.perf_counter() - self._since
        self._append({"step": step, "lr": rate, **means, "seconds": round(seconds, 3)})
        for key, value in {"lr": rate, **means}.items():
            self.writer.add_scalar(f"train/{key}", value, step)
        shown = {"loss": "loss", "miou": "mIoU", "expected_share": "expected", "real_share": "real"}
        self.bar.set_postfix_str(" ".join(f"{word} {means[key]:.3f}" for key, word in shown.items() if key in means))

    def _append(self, record: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _of_all(team: Team, values: dict[str, Tensor], counts: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Of all processes: values' means, sums of what was executed, sums of counts; one transfer."""
    own = torch.stack([value.detach().double().to(counts.device) for value in values.values()])
    total = team.sum(torch.cat([own, counts.double().flatten()]))
    joint = {}
    for name, value in zip(values, total):
        joint[name] = value if name.startswith("executed") else value / team.size
    return joint, total[len(own) :].view(counts.shape)


def _keep_records(path: Path, last: int) -> None:
    """Drop records after step `last`: a resumed run writes them again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line)
        except (ValueError, KeyError):
            continue  # a line cut short by a crash
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
