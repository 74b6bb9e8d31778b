"""What of a run's records and images a report shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dynroute.data import IGNORE
from dynroute.measure.results import Sample


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
