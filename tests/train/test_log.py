"""What a run tells: the training mIoU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dynroute.train.log import TrainingLog


@pytest.mark.parametrize("size", [(64, 32), (50, 45), (2, 3)])
def test_miou_of_the_low_resolution(tmp_path: Path, size: tuple[int, int]) -> None:
    """Labels that a quarter of the size says right are right, whatever the crop's size and the padding behind it."""
    low = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    labels = low.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : size[0], : size[1]].clone()
    labels[:, 2::8] = 255
    logits = torch.nn.functional.one_hot(low, 3).permute(0, 3, 1, 2).float()
    log = TrainingLog(tmp_path, 3, every=1, steps=2, start=0, quiet=True)
    log.step(1, 0.1, {"loss": torch.tensor(1.0)}, logits, labels)
    log.step(2, 0.1, {"loss": torch.tensor(1.0)}, logits.roll(1, 1), labels)
    log.close()
    first, second = (json.loads(line)["miou"] for line in (tmp_path / "log.jsonl").read_text().splitlines())
    if min(size) > 4:
        assert first == 1 and 0.3 < second < 0.6  # the second is all wrong, and both count
