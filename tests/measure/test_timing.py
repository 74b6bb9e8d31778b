"""Timing patterns, and runs that take turns."""

from __future__ import annotations

import torch

from dynroute.measure.timing import interleave, random_patterns
from dynroute.space.wiring import build_space


def test_random_patterns_are_exact_and_seeded() -> None:
    nodes = sum(len(row) for row in build_space(16)[1:])
    patterns = random_patterns(16, 0.5, 3, seed=1)
    assert torch.equal(patterns, random_patterns(16, 0.5, 3, seed=1))
    assert (patterns[:, 1:].amax(-1).sum((1, 2)) == round(0.5 * nodes)).all()
    assert not torch.equal(patterns[0], patterns[1])


def test_interleaving_takes_turns() -> None:
    order: list[str] = []
    seconds = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert len(order) == 8 and order.count("a") == 4
    assert order[2:4] != order[4:6]
    assert all(len(values) == 3 for values in seconds.values())
