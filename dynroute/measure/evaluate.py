"""Evaluation at full image size: quality, cost and routes of a network or of an inference runtime."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynroute.cost import space_macs
from dynroute.data import Normalise, Source
from dynroute.measure.metrics import confusion_matrix, scores
from dynroute.measure.results import Evaluation, GateStatistics
from dynroute.measure.taken import RoutesTaken
from dynroute.space.routing import is_path_open
from dynroute.space.wiring import PATH_NAMES


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Any],
    source: Source,
    normalise: Normalise,
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    batch: int = 1,
    max_images: int | None = None,
    device: str | torch.device = "cpu",
    each: Callable[[int, int], None] | None = None,
    predictions: Callable[[int, np.ndarray], None] | None = None,
) -> Evaluation:
    """Evaluate over a data set.

    Args:
        model: images float32 [N, 3, H, W] -> output with logits [N, K, H, W], gates [N, L+1, 4, 3], expected_mflops and
            real_mflops [N] and, from a runtime, executed_macs and executed_nodes. A module is put in evaluation mode.
        source: labelled images.
        normalise: as in training.
        flip: average with the mirrored image.
        scales: average over these sizes of the image.
        batch: images at once, where neighbours have one size.
        max_images: only the first so many.
        device: where images go.
        each: called with (images done, images in all).
        predictions: called with each image's index and its predicted classes, uint8 [H, W].
    """
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    count = len(source) if max_images is None else min(len(source), max_images)
    classes = len(source.class_names)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    tally = _Tally()
    per_image: list[dict[str, Any]] = []
    for indices, images, labels in _grouped(source, normalise, count, batch):
        tally.begin(len(indices))
        probabilities = _predict(model, images.to(device), flip, scales, tally)
        predicted = probabilities.argmax(1).cpu()
        for row, index in enumerate(indices):
            if predictions is not None:
                predictions(index, predicted[row].numpy().astype(np.uint8))
            own = confusion_matrix(predicted[row], labels[row], classes)
            confusion += own
            own_scores = scores(own)
            costs = {key: float(values[row]) for key, values in tally.current.items()}
            per_image.append({"name": source.name(index), "miou": _number(own_scores.miou), **costs})
        if each is not None:
            each(len(per_image), count)
    if training:
        model.train()  # type: ignore[attr-defined]

    total = scores(confusion)
    return Evaluation(
        miou=_number(total.miou),
        pixel_accuracy=_number(total.pixel_accuracy),
        iou={name: _number(value) for name, value in zip(source.class_names, total.iou)},
        images=count,
        passes=len(scales) * (2 if flip else 1),
        costs={key: float(np.mean([image[key] for image in per_image])) for key in tally.current},
        gates=tally.gates(),
        routes=tally.routes.statistics(),
        per_image=per_image,
    )


class _Tally:
    """Costs of the images at hand, summed over their passes; gates over everything."""

    def __init__(self) -> None:
        self.current: dict[str, Tensor] = {}
        self.routes = RoutesTaken()
        self._open: Tensor | None = None
        self._alpha: Tensor | None = None
        self._passes = 0
        self._all_open: dict[tuple[int, int], tuple[float, float]] = {}

    def begin(self, images: int) -> None:
        self._images = images
        self.current = {}

    def add(self, model: Any, out: Any, height: int, width: int) -> None:
        costs = {"expected_mflops": out.expected_mflops, "real_mflops": out.real_mflops}
        if getattr(out, "executed_macs", None) is not None:
            costs["executed_macs"] = out.executed_macs
        nodes = getattr(out, "executed_nodes", None)
        if nodes is not None:
            costs["executed_space_macs"] = space_macs(nodes)
        if hasattr(model, "costs"):
            if (height, width) not in self._all_open:
                tables = model.costs(height, width)
                self._all_open[height, width] = (tables.all_open, tables.all_open_real)
            expected, real = self._all_open[height, width]
            costs["all_open_expected_mflops"] = torch.full((self._images,), expected, dtype=torch.float64)
            costs["all_open_real_mflops"] = torch.full((self._images,), real, dtype=torch.float64)
        for key, value in costs.items():
            value = value.double().cpu()
            self.current[key] = self.current[key] + value if key in self.current else value
        gates = out.gates.double().cpu()
        opened, alpha = is_path_open(gates).double().sum(0), gates.sum(0)
        self._open = opened if self._open is None else self._open + opened
        self._alpha = alpha if self._alpha is None else self._alpha + alpha
        self._passes += gates.shape[0]
        self.routes.add(out.gates)

    def gates(self) -> GateStatistics | None:
        if self._open is None or self._alpha is None:
            return None
        return GateStatistics(
            list(PATH_NAMES), _rounded(self._open / self._passes), _rounded(self._alpha / self._passes)
        )


def _predict(
    model: Callable[[Tensor], Any], images: Tensor, flip: bool, scales: Sequence[float], tally: _Tally
) -> Tensor:
    """Logits [N, K, H, W]; or, with more than one pass, the sum of the passes' probabilities."""
    height, width = images.shape[-2:]
    single = len(scales) == 1 and not flip
    total: Tensor | None = None
    for scale in scales:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        scaled = images if scale == 1.0 else F.interpolate(images, size, mode="bilinear", align_corners=False)
        for mirrored in (False, True) if flip else (False,):
            out = model(scaled.flip(-1) if mirrored else scaled)
            tally.add(model, out, *size)
            logits = out.logits.float()
            if logits.shape[-2:] != (height, width):
                logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
            part = logits if single else logits.softmax(1)
            part = part.flip(-1) if mirrored else part
            total = part if total is None else total + part
    assert total is not None
    return total


def _grouped(
    source: Source, normalise: Normalise, count: int, batch: int
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Neighbours of one size, at most `batch`: indices, images [N, 3, H, W] (channels_last), labels [N, H, W]."""
    held: list[tuple[int, np.ndarray, np.ndarray]] = []
    for index in range(count):
        image, mask = source.read(index)
        if held and (len(held) == batch or held[0][2].shape != mask.shape):
            yield _stacked(held)
            held = []
        held.append((index, normalise(image), mask))
    if held:
        yield _stacked(held)


def _stacked(held: list[tuple[int, np.ndarray, np.ndarray]]) -> tuple[list[int], Tensor, Tensor]:
    images = torch.from_numpy(np.stack([image for _, image, _ in held])).permute(0, 3, 1, 2)
    return [index for index, _, _ in held], images, torch.from_numpy(np.stack([mask for _, _, mask in held]))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value  # JSON has no NaN


def _rounded(values: Tensor) -> list[Any]:
    return np.round(values.numpy(), 4).tolist()
