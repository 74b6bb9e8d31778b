"""The ledger against SPEC's figures and hand counts, and the budget loss."""

import pytest
import torch
from conftest import random_gates, random_images, random_network

import dynroute
from dynroute.space.wiring import KEEP, build_space, path_exists


@pytest.mark.parametrize(
    "small_gate, fixed, total", [(False, False, 33607), (True, False, 29159), (False, True, 28862)]
)
def test_l16_costs_at_768_are_the_published_ones(small_gate: bool, fixed: bool, total: float) -> None:
    net = dynroute.create_model("dynamic_raw_l16", small_gate=small_gate, gate="fixed" if fixed else "tanh")
    costs = net.costs(768, 768)
    assert costs.all_open == pytest.approx(26891.7, abs=0.05)
    assert costs.all_open + costs.stem + costs.decoder + float(costs.gate.sum()) == pytest.approx(total, abs=0.6)


def test_published_decoder_counts_height_for_width() -> None:
    net = dynroute.create_model("dynamic_raw_l16")
    assert net.costs(1024, 2048, published_decoder=True).decoder == pytest.approx(net.costs(1024, 2048).decoder / 2)


def test_costs_are_at_the_padded_size() -> None:
    net = random_network(small_gate=True)
    assert net.costs(100, 130).all_open == net.costs(128, 160).all_open


def test_wiring_of_the_growing_layers() -> None:
    rows = build_space(4)
    assert [len(r) for r in rows] == [1, 2, 3, 4, 4]
    assert rows[1][1].sources == (False, False, True)  # scale 1 appears: only from above
    assert rows[2][0].sources == (True, True, False)
    assert rows[2][1].sources == (False, True, True)  # scale 2 has nothing to send up yet
    assert rows[4][2].sources == (True, True, True)
    assert all(node.paths == (False, True, False) for node in rows[4])
    exists = path_exists(4)
    assert int(exists.sum()) == sum(sum(n.paths) for r in rows for n in r)


@pytest.mark.parametrize("layers", [3, 0, -1])
def test_fewer_than_four_layers_is_an_error(layers: int) -> None:
    with pytest.raises(ValueError, match="layers: wanted at least 4"):
        dynroute.create_model("dynamic_tiny", layers=layers)


def test_last_keep_and_init_cell_are_not_in_the_space() -> None:
    costs = random_network().costs(64, 64)
    assert float(costs.path[-1, :, KEEP].sum()) == 0 and float(costs.cell[0].sum()) == 0
    assert float(costs.path[0].sum()) > 0


def test_real_cost_counts_indicators() -> None:
    net = random_network()
    costs = net.costs(64, 64)
    gates = random_gates(net, 3, 0.5) * path_exists(net.config.layers)
    by_hand = ((gates.sum(-1) > 1e-4) * costs.cell).sum((1, 2)) + ((gates > 1e-4) * costs.path).sum((1, 2, 3))
    fixed_part = costs.stem + costs.decoder + float(costs.gate.sum())
    torch.testing.assert_close(costs.real(gates), by_hand + fixed_part)
    ones = path_exists(net.config.layers).float()[None]
    assert float(costs.expected(ones)) == pytest.approx(costs.all_open, rel=1e-6)
    assert float(costs.open_cost(ones)) == pytest.approx(costs.all_open, rel=1e-9)


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


def test_objective_leaves_budget_out_and_survives_an_ignored_batch() -> None:
    net = random_network().train()
    images = random_images(2, 32, 32)
    labels = torch.full((2, 32, 32), 255)
    losses = dynroute.objective(net, images, labels, progress=0.5)
    assert list(losses) == ["segmentation"] and losses["segmentation"].item() == 0
    with pytest.raises(ValueError, match="labels: wanted"):
        dynroute.objective(net, images, labels[:1], progress=0.5)
    with pytest.raises(ValueError, match="progress: wanted"):
        dynroute.objective(net, images, labels, progress=1.5)
