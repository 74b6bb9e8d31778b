"""The tables of costs against SPEC's figures and hand counts."""

from __future__ import annotations

import pytest
import torch

import dynroute
from dynroute.space.wiring import KEEP, path_exists
from tests.support.networks import random_gates, random_network


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


@pytest.mark.parametrize("in_channels", [1, 3, 8])
def test_stem_by_hand(in_channels: int) -> None:
    """The paper's way: sizes halved, 2 for a normalised value, 1 for a ReLU; at 64x96, of width 16 to 8 channels."""
    first = 32 * 48 * 16 * (9 * in_channels + 3)
    second = 32 * 48 * (9 * 16 + 16 * 16 + 3 * 16)
    third = 16 * 24 * (9 * 16 + 16 * 8 + 3 * 8)
    costs = random_network(in_channels=in_channels).costs(64, 96)
    assert costs.stem == pytest.approx((first + second + third) * 1e-6, rel=1e-12)
    assert costs.all_open == random_network().costs(64, 96).all_open


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
