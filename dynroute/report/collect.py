"""Gathers what a report shows: the run's own records, and its validation images through the runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute.data import IGNORE, Normalise, Source
from dynroute.report.work import Model, space_macs
from dynroute.train.metrics import confusion_matrix, scores


@dataclass
class Sample:
    """One validation image through the runtime.

    Attributes:
        index, name: in the data set.
        right: share of labelled pixels that are right; None where none is labelled.
        executed, space: executed MACs, in all and in the routing space.
        full_executed, full_space: the same with everything open, at this image's size.
        expected, real, full_expected, full_real: MFLOPs, the paper's.
        gates: float32 [L+1,4,3]; nodes: int64 [L+1,4,5].
    """

    index: int
    name: str
    right: float | None
    executed: int
    space: int
    full_executed: int
    full_space: int
    expected: float
    real: float
    full_expected: float
    full_real: float
    gates: Tensor
    nodes: Tensor

    @property
    def share(self) -> float:
        """Executed work as a share of all open."""
        return self.executed / self.full_executed


@dataclass
class Findings:
    """All samples, and what follows from them together."""

    samples: list[Sample]
    miou: float
    iou: list[float]
    pixel_accuracy: float

    @property
    def gates(self) -> Tensor:
        """float32 [M,L+1,4,3] of all samples."""
        return torch.stack([sample.gates for sample in self.samples])

    def mean(self, name: str) -> float:
        """Mean over samples of one of `Sample`'s numbers."""
        return float(np.mean([getattr(sample, name) for sample in self.samples]))


def observe(
    model: Model, source: Source, normalise: Normalise, count: int, each: Callable[[], None] | None = None
) -> Findings:
    """Runs the first `count` images of `source`, one at a time. Raises ValueError for an empty data set."""
    classes = len(source.class_names)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    samples: list[Sample] = []
    for index in range(min(count, len(source))):
        labels, out = predict(model, source, normalise, index)
        own = confusion_matrix(labels, torch.from_numpy(np.array(source.read(index)[1])), classes)
        confusion += own
        height, width = labels.shape
        tables, full = model.costs(height, width), model.all_open_work(height, width)
        assert full is not None
        fixed = float(tables.gate.sum()) + tables.stem + tables.decoder
        samples.append(
            Sample(
                index=index,
                name=source.name(index),
                right=float(own.diagonal().sum() / own.sum()) if own.sum() else None,
                executed=int(out.executed_macs[0]),
                space=int(space_macs(out.executed_nodes)[0]),
                full_executed=full[0],
                full_space=int(space_macs(full[1])),
                expected=float(out.expected_mflops[0]),
                real=float(out.real_mflops[0]),
                full_expected=tables.all_open,
                full_real=tables.all_open + fixed,
                gates=out.gates[0].clone(),
                nodes=out.executed_nodes[0].clone(),
            )
        )
        if each is not None:
            each()
    total = scores(confusion)
    return Findings(samples, total.miou, total.iou, total.pixel_accuracy)


def predict(model: Model, source: Source, normalise: Normalise, index: int) -> tuple[Tensor, Any]:
    """Labels uint8 [H,W] of one image of a data set, and the runtime's output."""
    image, _ = source.read(index)
    out = model(torch.from_numpy(normalise(image))[None].permute(0, 3, 1, 2))
    return out.logits[0].argmax(0).to(torch.uint8), out


def choose(samples: list[Sample], count: int) -> list[tuple[int, str]]:
    """Places in `samples`, evenly spread from least to most executed work (ties: fewer errors first); a word each."""
    order = sorted(range(len(samples)), key=lambda i: (samples[i].executed, 1.0 - (samples[i].right or 0.0)))
    count = min(count, len(order))
    ranks = [len(order) // 2] if count == 1 else [round(i * (len(order) - 1) / (count - 1)) for i in range(count)]
    words = {ranks[0]: "easy", ranks[-1]: "hard", ranks[len(ranks) // 2]: "median"}
    return [(order[rank], words.get(rank, f"{rank + 1} of {len(order)}")) for rank in ranks]


def error_map(image: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3]: the image in pale grey, wrong pixels red, ignored ones dark."""
    grey = 150.0 + image.astype(np.float32).mean(-1, keepdims=True) * (90.0 / 255.0)
    out = np.repeat(grey, 3, axis=-1)
    out[(labels != truth) & (truth != IGNORE)] = (214, 48, 49)
    out[truth == IGNORE] = (60, 60, 66)
    return out.astype(np.uint8)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of log.jsonl; a line cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records
