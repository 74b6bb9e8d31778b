"""Factors of classes in the segmentation loss: as given, or from how often the training split shows each class."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dynroute.data import IGNORE, Source
from dynroute.files import write_whole
from dynroute.train.parse import ConfigError
from dynroute.train.processes import Team

FILE = "class_weights.json"


def class_weights(rule: str | Sequence[float], source: Source) -> list[float]:
    """One factor for each class.

    Args:
        rule: the factors themselves; or, with p_k the share of class k in the labelled pixels of `source`,
            "balanced": 1 / p_k over the mean of these (inverse frequency, as scikit-learn's, but with mean 1), or
            "enet": 1 / ln(1.02 + p_k) (Paszke et al. 2016). A class without a pixel gets 1.
        source: the training split, all of whose labels are read for a rule by name.

    Raises:
        ConfigError: factors that are not as many as classes, or no pixel is labelled.
    """
    names = source.class_names
    if not isinstance(rule, str):
        if len(rule) != len(names):
            raise ConfigError(f"train.class_weights: wanted {len(names)} numbers, one for each class, got {len(rule)}")
        return list(rule)
    pixels = class_pixels(source)
    labelled = sum(pixels)
    if not labelled:
        raise ConfigError(f"train.class_weights: {rule}: no pixel of the training split is labelled")
    shares = [count / labelled for count in pixels]
    if rule == "enet":
        return [1.0 / math.log(1.02 + share) if share else 1.0 for share in shares]
    inverse = [1.0 / share for share in shares if share]
    mean = sum(inverse) / len(inverse)
    return [1.0 / share / mean if share else 1.0 for share in shares]


def class_pixels(source: Source) -> list[int]:
    """Pixels of each class in all labels of `source`; with a progress bar where that takes over two seconds."""
    counts = np.zeros(IGNORE + 1, dtype=np.int64)
    bar = tqdm(range(len(source)), desc="class weights", unit="image", delay=2, leave=False)
    for index in bar:
        _, labels = source.read(index)
        counts += np.bincount(labels.ravel(), minlength=IGNORE + 1)
    return counts[: len(source.class_names)].tolist()


def resolved(
    rule: str | Sequence[float] | None, source: Source, team: Team, saved: Sequence[float] | None, folder: Path
) -> Tensor | None:
    """A run's factors float32 [K], on its device, the same in all processes; None: without a rule.

    The first process finds them out, says them, and writes them to `class_weights.json` in the run's folder; a run that
    goes on has those of its checkpoint, `saved`.

    Raises:
        ConfigError: as `class_weights`.
    """
    if rule is None:
        return None

    def find() -> list[float]:
        factors = class_weights(rule, source)
        listed = dict(zip(source.class_names, factors))
        write_whole(folder / FILE, json.dumps({"rule": rule, "weights": listed}, indent=1) + "\n")
        team.say([f"train.class_weights: {', '.join(f'{name} {value:.4g}' for name, value in listed.items())}"])
        return factors

    return torch.tensor(saved or team.first(find), dtype=torch.float32, device=team.device)
