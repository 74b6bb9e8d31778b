"""A data set's images through the runtime, one by one: their routes, their work, and what was right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynroute.cost import space_macs
from dynroute.data import Normalise, Source
from dynroute.measure.metrics import confusion_matrix, scores
from dynroute.measure.opened import Model
from dynroute.measure.results import Findings, Sample


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
                full_real=tables.all_open_real,
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
