"""What a check of a data set finds, whatever the set is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SplitFindings:
    """What a split holds.

    Attributes:
        split: its name.
        images: how many there are.
        sizes: how many images have each size, `WIDTHxHEIGHT`, from the fewest pixels to the most.
        hidden, others: what is passed over; others lie among the images and are none.
        unreadable: files that cannot be read, each with its line.
        refused: why a training would refuse the split, or learn something else than is meant; a line each.
        said: what may not be meant; a line each.
    """

    split: str
    images: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def keep_sizes(self, counts: Counter[tuple[int, int]]) -> None:
        """`sizes`, from how many images have each width and height."""
        by_area = sorted(counts.items(), key=lambda item: (item[0][0] * item[0][1], item[0]))
        self.sizes = {f"{width}x{height}": count for (width, height), count in by_area}


@dataclass
class Findings:
    """What a data set holds: its classes, each split, and images that lie in two splits with the same bytes."""

    root: str
    class_names: list[str]
    splits: Sequence[SplitFindings]
    duplicates: list[tuple[str, str]]

    @property
    def faults(self) -> list[str]:
        """All lines for which a training would refuse the data set, fail in it, or learn what is not meant."""
        return [line for split in self.splits for line in (*split.refused, *split.unreadable.values())]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "faults": self.faults}
