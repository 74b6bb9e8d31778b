"""Which images a report shows."""

from __future__ import annotations

import torch

from dynroute.measure.observe import Sample
from dynroute.report.choose import choose


def sample(executed: int, right: float | None = 0.5) -> Sample:
    empty = torch.zeros(1)
    return Sample(0, "x", right, executed, 0, 100, 0, 0.0, 0.0, 1.0, 1.0, empty, empty)


def test_images_are_chosen_from_least_to_most_work() -> None:
    samples = [sample(5), sample(1), sample(9), sample(3), sample(7)]
    assert choose(samples, 3) == [(1, "easy"), (0, "median"), (2, "hard")]
    assert choose(samples, 1) == [(0, "median")]
    assert [place for place, _ in choose(samples, 9)] == [1, 3, 0, 4, 2]
    # all of one cost: by their errors
    assert [place for place, _ in choose([sample(1, 0.2), sample(1, 0.9), sample(1, 0.5)], 3)] == [1, 2, 0]
