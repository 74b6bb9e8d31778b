"""Each alarm on both sides of its threshold, from hand-made numbers."""

from __future__ import annotations

import json

import pytest

from dynroute.cost.budget import Budget
from dynroute.measure import alarms
from dynroute.measure.alarms import Alarm, in_training, of_routing, of_times
from dynroute.models.config import NetworkConfig
from tests.support.routed import routes, timed

NETWORK = NetworkConfig(num_classes=3, channels=8, layers=6)
BUDGET = Budget(weight=1.0, target=0.1)
CROP = (64, 64)


def kinds(found: list[Alarm]) -> list[str]:
    return [alarm.kind for alarm in found]


@pytest.mark.parametrize("share, alarmed", [(0.0, True), (0.0199, True), (0.02, False), (0.1, False)])
def test_all_closed(share: float, alarmed: bool) -> None:
    found = alarms.all_closed(routes(open_nodes=share))
    assert (found is not None) == alarmed
    if found is not None:
        assert found.severity == "red" and f"{share:.1%} of the grid's nodes are open" in found.message


@pytest.mark.parametrize("share, wanted, alarmed", [(0.981, 0.1, True), (0.98, 0.1, False), (1.0, 0.98, False)])
def test_all_open(share: float, wanted: float, alarmed: bool) -> None:
    found = alarms.all_open(routes(open_paths=share), wanted, BUDGET)
    assert (found is not None) == alarmed
    if found is not None:
        assert found.severity == "red" and "98.1% of all paths are open" in found.message
        assert "the budget wants 10%" in found.message


@pytest.mark.parametrize("images, closed, alarmed", [(8, [(2, 8)], True), (7, [(2, 8)], False), (8, [], False)])
def test_dead_nodes(images: int, closed: list[tuple[int, int]], alarmed: bool) -> None:
    assert (alarms.dead_nodes(routes(images=images, closed=closed)) is not None) == alarmed


def test_dead_nodes_are_listed_by_scale() -> None:
    closed, absent = [(2, 8), (0, 4)], [(3, 32), (4, 32), (5, 32), (2, 32), (4, 8)]
    found = alarms.dead_nodes(routes(closed=closed, absent=absent))
    assert found is not None and found.severity == "yellow"
    assert found.message == (
        "7 of the grid's 21 nodes are open for none of 16 images; nothing leads to 5 of them "
        "(at 1/4 layer 0, at 1/8 layers 2 4, at 1/32 layers 2-5)"
    )
    assert "no image uses the scale 1/32" in found.meaning  # it exists from layer 2 on
    assert found.numbers["dead"] == 7
    assert "scale" not in (alarms.dead_nodes(routes(absent=absent[1:])) or found).meaning


@pytest.mark.parametrize("images, distinct, alarmed", [(8, 1, True), (7, 1, False), (8, 2, False)])
def test_one_route(images: int, distinct: int, alarmed: bool) -> None:
    found = alarms.one_route(routes(images=images, distinct=distinct, entropy_bits=0.0))
    assert (found is not None) == alarmed
    if found is not None:
        assert found.severity == "yellow" and "then a fixed network would do" in found.meaning


@pytest.mark.parametrize("expected, space, alarmed", [(0.10, 0.351, True), (0.10, 0.35, False), (0.5, 0.2, False)])
def test_expected_far_from_real(expected: float, space: float, alarmed: bool) -> None:
    found = alarms.expected_far_from_real(expected, space, BUDGET)
    assert (found is not None) == alarmed
    if found is not None:
        assert "10% of the space's cost (expected), by what is open 35% (real)" in found.message


@pytest.mark.parametrize(
    "space, severity",
    [(0.199, None), (0.201, "yellow"), (0.54, "yellow"), (0.56, "red"), (0.87, "red"), (0.01, None)],
)
def test_budget_missed(space: float, severity: str | None) -> None:
    found = alarms.budget_missed(0.1, 0.11, space, BUDGET)
    assert (found.severity if found is not None else None) == severity
    if found is not None:
        assert f"10% of the space's cost wanted, {space:.0%} left" in found.message


def test_a_budget_that_closed_too_much() -> None:
    found = alarms.budget_missed(0.55, 0.3, 0.44, BUDGET)
    assert found is not None and found.severity == "yellow" and "more is closed than was asked for" in found.meaning
    assert alarms.budget_missed(0.55, 0.3, 0.46, BUDGET) is None


def test_costs_that_are_not_finite_raise_no_alarm() -> None:
    nan = float("nan")
    assert of_routing(routes(), (nan, nan), NETWORK, BUDGET, CROP) == []


def test_advice_is_what_the_budget_has_not_done_yet() -> None:
    def advice(budget: Budget) -> str:
        return (alarms.budget_missed(0.1, 0.1, 0.9, budget) or pytest.fail("no alarm")).advice

    assert "budget.measure=real" in advice(BUDGET) and "budget.knee" in advice(BUDGET)
    assert advice(Budget(weight=2.5, measure="real", knee=0.1)) == "a larger budget.weight than 2.5; more steps"


def test_a_target_of_a_given_full_cost_is_brought_to_the_networks_own() -> None:
    full = NETWORK.costs(*CROP).all_open
    assert alarms.wanted_share(BUDGET, NETWORK, CROP) == 0.1
    half = Budget(weight=1.0, target=0.2, full_mflops=full / 2)
    assert alarms.wanted_share(half, NETWORK, CROP) == pytest.approx(0.1)


def test_all_that_is_wrong_with_a_routing() -> None:
    wrong = routes(open_paths=1.0, distinct=1, closed=[(1, 4)])
    found = of_routing(wrong, (0.1, 0.87), NETWORK, BUDGET, CROP)
    assert kinds(found) == ["all_open", "budget_missed", "dead_nodes", "one_route", "expected_far_from_real"]
    assert [alarm.severity for alarm in found] == ["red"] * 2 + ["yellow"] * 3
    json.dumps([alarm.to_json() for alarm in found], allow_nan=False)
    # nothing was asked to close
    no_budget = ["dead_nodes", "one_route", "expected_far_from_real"]
    assert kinds(of_routing(wrong, (0.1, 0.87), NETWORK, Budget(), CROP)) == no_budget
    assert kinds(of_routing(wrong, (0.1, 0.87), NETWORK, None, CROP)) == no_budget
    assert kinds(of_routing(wrong, None, NETWORK, BUDGET, CROP)) == ["all_open", "dead_nodes", "one_route"]
    assert of_routing(routes(), (0.12, 0.15), NETWORK, BUDGET, CROP) == []
    assert of_routing(None, None, NETWORK, BUDGET, CROP) == []


def test_a_collapse_is_said_alone() -> None:
    closed = routes(open_nodes=0.0, distinct=1, closed=[(0, 4)])
    assert kinds(of_routing(closed, (0.0, 0.0), NETWORK, BUDGET, CROP)) == ["all_closed"]


def test_fixed_gates_are_not_blamed_for_one_route() -> None:
    fixed = NetworkConfig(num_classes=3, channels=8, layers=6, gate="fixed")
    assert of_routing(routes(distinct=1, open_paths=1.0), (1.0, 1.0), fixed, None, CROP) == []
    assert in_training(routes(distinct=1, open_nodes=0.0), None, fixed, None, CROP, 1.0) == []


@pytest.mark.parametrize("progress, settled", [(0.0, False), (0.519, False), (0.521, True), (1.0, True)])
def test_gates_have_their_time_to_close(progress: float, settled: bool) -> None:
    """From 40% over 2%, and a tenth of training for the gates."""
    begun = routes(open_paths=1.0, distinct=1)
    wanted = ["all_open", "one_route", "expected_far_from_real"] if settled else []
    assert kinds(in_training(begun, (0.6, 1.0), NETWORK, BUDGET, CROP, progress)) == wanted
    assert in_training(begun, (0.6, 1.0), NETWORK, None, CROP, progress) == []
    late = Budget(weight=1.0, start=0.9, ramp=0.5, bridge_end=1.0)
    assert kinds(in_training(begun, None, NETWORK, late, CROP, progress)) == ["all_open", "one_route"] * (progress == 1)


def test_in_training_what_has_closed_is_said_at_once() -> None:
    assert kinds(in_training(routes(closed=[(1, 4)]), None, NETWORK, BUDGET, CROP, 0.0)) == ["dead_nodes"]
    assert kinds(in_training(routes(open_nodes=0.01), None, NETWORK, None, CROP, 0.0)) == ["all_closed"]


def test_skipping_that_is_slower() -> None:
    found = of_times([timed(1.29, 0.98), timed(0.8, 0.7, batch=8)])
    assert kinds(found) == ["skipping_slower"] and found[0].severity == "red"
    assert found[0].message == (
        "at batch 1, own gates, routed takes 1.29 times as long as all open on this machine, for 98% of the work: "
        "skipping does not pay here"
    )
    assert found[0].numbers["rows"] == [
        {"batch": 1, "routes": "own gates", "time": pytest.approx(1.29), "work": pytest.approx(0.98)}
    ]
    assert "; at batch 8" in of_times([timed(1.29, 0.98), timed(1.1, 0.7, batch=8)])[0].message


@pytest.mark.parametrize("eager, alarmed", [(7.5, True), (7.95, False), (20.0, False), (None, False)])
def test_slower_than_eager(eager: float | None, alarmed: bool) -> None:
    """Routed takes 8 ms, 7.92 to 8.08."""
    found = of_times([timed(0.8, 0.7, eager=eager)])
    assert kinds(found) == ["slower_than_eager"] * alarmed
    assert not alarmed or "8.00 ms an image routed, 7.50 in eager PyTorch" in found[0].message


@pytest.mark.parametrize("work, noise, alarmed", [(0.9, 0.05, True), (0.99, 0.05, False), (0.9, 0.01, False)])
def test_a_saving_that_is_not_seen(work: float, noise: float, alarmed: bool) -> None:
    found = of_times([timed(0.97, work, noise)])
    assert kinds(found) == ["saving_not_seen"] * alarmed
    assert not alarmed or "no difference measured" in found[0].message
