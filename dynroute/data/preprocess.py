"""What a saved network must be told about its data: how to normalise an image, and what its classes are called."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from dynroute.data.augment import Normalise
from dynroute.data.source import DataError

FILE = "preprocess.json"


def save_preprocess(folder: str | Path, normalise: Normalise, class_names: list[str]) -> Path:
    """Write `preprocess.json` beside a saved network; returns its path."""
    path = Path(folder) / FILE
    path.write_text(json.dumps({**asdict(normalise), "class_names": class_names}, indent=2) + "\n", encoding="utf-8")
    return path


def load_preprocess(folder: str | Path) -> tuple[Normalise, list[str] | None]:
    """Read `preprocess.json`; without one, the published normalisation and no class names. Raises DataError."""
    path = Path(folder) / FILE
    if not path.is_file():
        return Normalise(), None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        normalise = Normalise(mean=tuple(raw["mean"]), std=tuple(raw["std"]), order=raw["order"])
        return normalise, list(raw["class_names"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: wanted mean, std, order, class_names as training wrote them ({error!r})") from error
