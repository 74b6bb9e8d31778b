"""Evaluation: flips, scales, and runtimes that count their work."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import dynroute
from dynroute.data import Normalise, ScenesDataset
from dynroute.measure import evaluate
from dynroute.train.setup import normalisation
from tests.support.runs import small


def test_evaluate_flips_scales_and_runtimes() -> None:
    net = dynroute.create_model("dynamic_tiny", num_classes=7, layers=4)
    source, normalise = ScenesDataset(3, 64), normalisation(small(Path("unused")).data)
    plain = evaluate(net, source, normalise)
    assert net.training
    assert plain.passes == 1 and plain.images == 3 and len(plain.per_image) == 3
    assert plain.costs["real_mflops"] <= plain.costs["all_open_real_mflops"]
    assert len(plain.gates.open_probability) == 5
    json.dumps(plain.to_json(), allow_nan=False)
    many = evaluate(net, source, normalise, flip=True, scales=(1.0, 1.5), max_images=2)
    assert many.passes == 4 and many.images == 2
    assert many.costs["real_mflops"] > 2 * plain.costs["real_mflops"]

    def runtime(images: torch.Tensor) -> Any:
        out = net.eval()(images)
        out.executed_macs = torch.full((len(images),), 1000)
        out.executed_nodes = torch.ones(len(images), 5, 4, 5, dtype=torch.int64)
        return out

    counted = evaluate(runtime, source, normalise, batch=2)
    assert counted.costs["executed_macs"] == 1000
    # 5 rows of 4 nodes, 4 kinds that are no gate, less the 4 cells of row 0
    assert counted.costs["executed_space_macs"] == 5 * 4 * 4 - 4


class Sided:
    """Four pixels: a class on the left, the other on the right."""

    class_names = ("dark", "bright")

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "sided"

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        mask = np.array([[0, 0, 0, 1]] * 4, np.uint8)
        return np.repeat(mask[..., None] * np.uint8(255), 3, axis=2), mask


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 2.0)])
def test_a_flipped_pass_is_flipped_back(scales: tuple[float, ...]) -> None:
    """A model that sees each pixel alone is right whichever way the image lies."""

    def model(images: torch.Tensor) -> Any:
        logits = torch.stack([-images[:, 0], images[:, 0]], 1)
        zeros = torch.zeros(len(images))
        return SimpleNamespace(
            logits=logits, gates=torch.zeros(len(images), 5, 4, 3), expected_mflops=zeros, real_mflops=zeros
        )

    normalise = Normalise(mean=(127.5,) * 3, std=(127.5,) * 3)
    for flip in (False, True):
        result = evaluate(model, Sided(), normalise, flip=flip, scales=scales)
        assert result.miou == 1.0 and result.passes == len(scales) * (1 + flip)
