"""The budget: its loss, its schedule, its bridge."""

from __future__ import annotations

import pytest

import dynroute
from dynroute.space.wiring import path_exists
from tests.support.networks import random_gates, random_network


def test_budget_acts_from_forty_percent_with_two_percent_warmup() -> None:
    budget = dynroute.Budget(0.8, 0.1)
    assert [budget.warmup(p) for p in (0.0, 0.4, 1.0)] == [0.0, 0.0, 1.0]
    assert budget.warmup(0.41) == pytest.approx(0.5)
    assert dynroute.Budget(0.8, 0.1, ramp=0.3).warmup(0.55) == pytest.approx(0.5)
    net = random_network()
    costs = net.costs(64, 64)
    gates = path_exists(6).float()[None].requires_grad_()
    loss = budget.loss(gates, costs, 0.41)
    assert loss.item() == pytest.approx(0.8 * 0.5 * 0.9**2, rel=1e-5)


def test_real_measure_prices_what_is_open_and_pushes_it_down() -> None:
    net = random_network()
    costs = net.costs(64, 64)
    gates = (random_gates(net, 2, 0.6) * path_exists(6)).requires_grad_()
    loss = dynroute.Budget(1.0, 0.0, measure="real").loss(gates, costs, 1.0)
    share = costs.open_cost(gates.detach()).mean() / costs.all_open
    assert loss.item() == pytest.approx(float(share**2), rel=1e-5)
    loss.backward()
    assert gates.grad is not None and (gates.grad[gates > 1e-4] >= 0).all() and gates.grad.sum() > 0


def test_the_bridge_falls_from_start_to_end() -> None:
    budget = dynroute.Budget(0.8, 0.1, bridge=2.0)
    assert [budget.bridge_at(p) for p in (0.0, 0.39, 0.8, 1.0)] == [0.0] * 4
    assert budget.bridge_at(0.4) == pytest.approx(2.0) and budget.bridge_at(0.6) == pytest.approx(1.0)
    early = dynroute.Budget(0.8, 0.1, bridge=2.0, start=0.2, bridge_end=0.6)
    assert early.bridge_at(0.4) == pytest.approx(1.0) and early.bridge_at(0.6) == early.bridge_at(0.19) == 0.0
    assert early.warmup(0.2) == 0.0 and early.warmup(0.21) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "fields", [{"measure": "wall"}, {"full_mflops": 0.0}, {"ramp": 0.0}, {"bridge": -1.0}, {"start": 0.9}]
)
def test_budget_errors(fields: dict) -> None:
    with pytest.raises(ValueError, match="wanted"):
        dynroute.Budget(1.0, 0.1, **fields)
