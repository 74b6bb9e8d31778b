"""What a row of timings says: the unwelcome first, and nothing that noise may have done."""

from __future__ import annotations

import pytest

from dynroute.measure.verdict import outcome, pays, saves_work, sentence, time_range
from tests.support.routed import timed


@pytest.mark.parametrize(
    "time, work, noise, said",
    [
        (1.29, 0.98, 0.02, "routed takes 1.29 times as long as all open on this machine, for 98% of the work: "
         "skipping does not pay here"),
        (1.29, 1.02, 0.02, "routed takes 1.29 times as long as all open on this machine, for 102% of the work: "
         "skipping does not pay here"),
        (0.80, 0.70, 0.02, "routed takes 80% of all open's time, for 70% of the work"),
        (0.98, 0.70, 0.05, "no difference measured: routed takes 93% to 103% of all open's time, for 70% of the work"),
        (1.01, 1.00, 0.05, "no difference measured: routed takes 96% to 106% of all open's time, for 100% of the work: "
         "hardly any work was skipped"),
        (0.90, 1.00, 0.01, "routed takes 90% of all open's time, for 100% of the work: hardly any work was skipped"),
    ],
)  # fmt: skip
def test_sentences(time: float, work: float, noise: float, said: str) -> None:
    assert sentence(timed(time, work, noise)) == said


def test_the_range_is_of_the_times() -> None:
    low, high = time_range(timed(0.8, 0.5, 0.1))
    assert low == pytest.approx(0.8 / 1.1) and high == pytest.approx(0.8 / 0.9)


@pytest.mark.parametrize(
    "time, noise, wanted",
    [(0.94, 0.05, "faster"), (0.96, 0.05, "same"), (1.04, 0.05, "same"), (1.06, 0.05, "slower"), (1.0, 0.0, "same")],
)
def test_outcomes(time: float, noise: float, wanted: str) -> None:
    assert outcome(timed(time, 0.5, noise)) == wanted


@pytest.mark.parametrize("work, saves", [(0.979, True), (0.981, False), (1.1, False)])
def test_work_that_is_saved(work: float, saves: bool) -> None:
    assert saves_work(timed(0.5, work)) == saves
    assert pays(timed(0.5, work)) == saves and not pays(timed(1.5, work))
