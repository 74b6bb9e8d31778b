"""From the values that masks store to classes, and what values cannot be meant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynroute.data.masks import Tally
from dynroute.data.source import IGNORE, DataError, File

CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""The label ids of Cityscapes that are trained on, in the order of the 19 classes."""
VOC2012 = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The 21 classes of PASCAL VOC 2012, as its development kit names them."""
_NAMES = {
    "cityscapes": list(CITYSCAPES.values()),
    "cityscapes_train_ids": list(CITYSCAPES.values()),
    "voc2012": list(VOC2012),
}
SCHEMES = ("binary", "cityscapes", "cityscapes_train_ids", "voc2012", "reduce_zero_label")
_SHOWN = 8


class Labels:
    """What the values in masks mean.

    Args:
        scheme: None takes values as classes; a map {value: class} takes those that it names so, 255 as a class being
            "ignored", and leaves the others; or a name: `binary` (0 and 255 are classes 0 and 1), `cityscapes` (label
            ids 0..33 to the 19 classes, the others ignored), `cityscapes_train_ids` (0..18), `voc2012` (0..20), 255
            being ignored in both, `reduce_zero_label` (0 is ignored, k is class k - 1).
        ignore: the value that is ignored where the scheme does not say otherwise.

    Raises:
        DataError: an unknown name, or a class outside 0..255.
    """

    def __init__(self, scheme: str | Mapping[int, int] | None = None, ignore: int = IGNORE) -> None:
        self.scheme, self.ignore = scheme, ignore
        self.names = list(_NAMES[scheme]) if isinstance(scheme, str) and scheme in _NAMES else None
        self.classes = 2 if scheme == "binary" else len(self.names) if self.names else None
        self._table = _table(scheme, ignore)

    def index(self, value: int) -> int | None:
        """The class of a value, 255 where it is ignored, None where it is neither."""
        if value in self._table:
            return self._table[value]
        if value == self.ignore:
            return IGNORE
        return value if not isinstance(self.scheme, str) and 0 <= value < IGNORE else None

    def names_value(self, value: int) -> bool:
        """Whether the scheme itself says what this value is."""
        return value in self._table

    def __call__(self, path: File, values: np.ndarray, classes: int) -> np.ndarray:
        """Values [H,W] of the mask `path` -> labels uint8 [H,W]. Raises DataError: a value outside the classes."""
        if values.dtype == np.uint8:
            stored = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
        else:
            stored = np.unique(values)
        table = {int(value): self.index(int(value)) for value in stored}
        wrong = [value for value, label in table.items() if _is_outside(label, classes)]
        if wrong:
            raise DataError(self.outside(path, wrong, classes))
        if all(value == label for value, label in table.items()):
            return values.astype(np.uint8, copy=False)
        chosen = np.asarray(list(table.values()), dtype=np.uint8)
        if values.dtype != np.uint8:
            return chosen[np.searchsorted(stored, values)]
        of_value = np.zeros(256, dtype=np.uint8)
        of_value[stored] = chosen
        return of_value[values]

    def outside(self, path: File, values: Sequence[int], classes: int | None) -> str:
        """The line that refuses values outside the classes, with the option that maps them."""
        more = f" (and {', '.join(map(str, values[1:_SHOWN]))})" if len(values) > 1 else ""
        if isinstance(self.scheme, str):
            ids = {
                "binary": "0 or 255",
                "cityscapes": "label ids 0..33",
                "cityscapes_train_ids": "train ids 0..18",
                "voc2012": "0..20",
                "reduce_zero_label": f"0..{classes or 254}",
            }
            return (
                f"{path}: label {values[0]}{more} found, wanted {ids[self.scheme]} (data.labels: {self.scheme}) or "
                f"{self.ignore} (ignored)"
            )
        way = f"data.labels maps values to classes, such as {{{values[0]}: 1}}"
        if list(values) == [classes]:
            way += "; where classes are counted from one, data.labels: reduce_zero_label"
        elif classes == len(CITYSCAPES) and max(values) <= max(CITYSCAPES):
            way += "; for label ids of Cityscapes, data.labels: cityscapes"
        elif 255 in values:
            way += "; for 0 and 255, data.labels: binary; data.ignore is the value that is ignored"
        else:
            way += f", or ignores them ({{{values[0]}: 255}})"
        wanted = f"0..{(classes or IGNORE) - 1} or {self.ignore} (ignored)"
        return f"{path}: label {values[0]}{more} found, wanted {wanted}; {way}"


@dataclass(frozen=True)
class Finding:
    """What is wrong with a split's labels: `refused` where it cannot be meant, else it is said; one line."""

    refused: bool
    message: str


def judge(
    found: Tally,
    labels: Labels,
    folder: Path,
    classes: int | None,
    names: Sequence[str] | None,
    withheld: bool = False,
) -> list[Finding]:
    """What of the values found in a split's masks cannot be meant, or may not be.

    Args:
        found: the values of all its masks.
        labels: what they mean.
        folder: of the masks, for the messages.
        classes: how many there are, where something says so; None: as many as the largest label asks for.
        names: those of the classes, where this split is to show them all.
        withheld: whether the split may be without labels, see `Listing`.
    """
    meant = {value: labels.index(value) for value in sorted(found.pixels)}
    outside = [value for value, label in meant.items() if _is_outside(label, classes)]
    if outside:
        return [Finding(True, labels.outside(found.first[outside[0]], outside, classes))]
    seen = sorted({label for label in meant.values() if label is not None and label != IGNORE})
    if not seen and withheld:
        return [Finding(False, f"{folder}: no labels, they are not public: there are predictions, but no scores")]
    if not seen:
        return [Finding(True, f"{folder}: every mask is empty (all {_listed(meant)}, ignored), wanted labels")]
    said = [*_binary(found, labels, seen, classes), *_gaps(found, seen, classes, names, folder)]
    empty = [path for path, values in found.of_mask.items() if all(meant[value] == IGNORE for value in values)]
    if empty:
        values = _listed(sorted({value for path in empty for value in found.of_mask[path]}))
        message = (
            f"{empty[0]}: all of this mask is ignored (value {values}); {len(empty)} such masks in all; data.ignore "
            "and data.labels say what is ignored"
        )
        said.append(Finding(False, message))
    return said


def _binary(found: Tally, labels: Labels, seen: list[int], classes: int | None) -> list[Finding]:
    """0 beside 255 alone: most often 255 is the foreground."""
    if seen != [0] or labels.index(255) != IGNORE or 255 not in found.pixels or labels.names_value(255):
        return []
    message = (
        f"{found.first[255]}: values {_listed(sorted(found.pixels))} alone in these masks, and 255 is ignored, so a "
        "single class is left; data.labels: binary makes 255 class 1, data.labels: {255: 255} says that it is ignored"
    )
    return [Finding(classes is None or classes <= 2, message)]


def _gaps(
    found: Tally, seen: list[int], classes: int | None, names: Sequence[str] | None, folder: Path
) -> list[Finding]:
    """Classes that no mask shows."""
    missing = sorted(set(range(classes or seen[-1] + 1)) - set(seen))
    if not missing or (classes is not None and names is None):
        return []
    from_one = "; where classes are counted from one, data.labels: reduce_zero_label" if missing == [0] else ""
    if names is not None:
        message = (
            f"{folder}: {len(missing)} of {len(names)} classes occur in no mask: "
            f"{_listed([f'{names[k]} ({k})' for k in missing])}; values found: {_listed(sorted(found.pixels))}; "
            f"data.labels maps values{from_one}"
        )
        return [Finding(False, message)]
    largest = found.first[max(found.pixels, key=lambda value: (value != IGNORE, value))]
    pairs = ", ".join(f"{value}: {k}" for k, value in enumerate(seen[:_SHOWN]))
    message = (
        f"{largest}: labels {_listed(seen)} occur and {len(missing)} below the largest do not, but without names that "
        f"is a network of {seen[-1] + 1} classes; data.labels maps values, such as {{{pairs}}}; classes.txt names "
        f"classes{from_one}"
    )
    return [Finding(len(missing) > len(seen), message)]


def _table(scheme: str | Mapping[int, int] | None, ignore: int) -> dict[int, int]:
    if scheme is None:
        return {}
    if isinstance(scheme, str):
        if scheme == "binary":
            return {0: 0, 255: 1}
        if scheme == "cityscapes":
            ids = list(CITYSCAPES)
            return {value: ids.index(value) if value in CITYSCAPES else IGNORE for value in range(-1, 34)}
        if scheme in _NAMES:
            return {-1: IGNORE, 255: IGNORE, **{value: value for value in range(len(_NAMES[scheme]))}}
        if scheme == "reduce_zero_label":
            return {0: IGNORE, **{value: value - 1 for value in range(1, 256) if value != ignore}}
        raise DataError(f"labels: wanted a map or one of {', '.join(SCHEMES)}, got {scheme!r}")
    wrong = [f"{value}: {label}" for value, label in scheme.items() if not 0 <= label <= IGNORE]
    if wrong:
        raise DataError(f"labels: wanted classes 0..254, or 255 for what is ignored, got {wrong[0]}")
    return dict(scheme)


def _is_outside(label: int | None, classes: int | None) -> bool:
    return label is None or (label != IGNORE and classes is not None and label >= classes)


def _listed(items: Sequence[object] | Mapping[int, object]) -> str:
    shown = ", ".join(str(item) for item in list(items)[:_SHOWN])
    return shown + (f", ... ({len(items)})" if len(items) > _SHOWN else "")
