"""Statistics of routes."""

from __future__ import annotations

import pytest
import torch

import dynroute
from dynroute.measure.alarms import in_words
from dynroute.measure.results import RouteStatistics
from dynroute.measure.taken import RoutesTaken
from dynroute.space.wiring import DOWN, KEEP, UP, path_exists
from tests.support.networks import random_gates, random_images, random_network

LAYERS = 4
NODES, PATHS = 2 + 3 + 4 + 4, int(path_exists(LAYERS).sum())


def all_open(images: int) -> torch.Tensor:
    return path_exists(LAYERS).float().repeat(images, 1, 1, 1)


def statistics(*batches: torch.Tensor) -> RouteStatistics:
    taken = RoutesTaken()
    for gates in batches:
        taken.add(gates)
    found = taken.statistics()
    assert found is not None
    return found


def test_nothing_has_no_statistics() -> None:
    assert RoutesTaken().statistics() is None


def test_one_route_whatever_the_alphas() -> None:
    found = statistics(all_open(3), 0.3 * all_open(2))
    assert (found.images, found.layers, found.distinct, found.largest, found.entropy_bits) == (5, LAYERS, 1, 1.0, 0.0)
    assert found.open_nodes == found.open_paths == 1.0
    assert found.closed == found.absent == []


def test_entropy_of_two_routes() -> None:
    """Three images in four take one, the fourth another; batches do not matter."""
    gates = all_open(4)
    gates[3, 2, 1, KEEP] = 0
    found = statistics(gates)
    assert found == statistics(gates[:1], gates[1:3], gates[3:])
    assert found.distinct == 2 and found.largest == 0.75
    assert found.entropy_bits == pytest.approx(0.811278)
    assert found.open_paths == pytest.approx(1 - 0.25 / PATHS)
    assert in_words(found) == "2 different for 4 images, 0.8 bits of at most 2.0; 75% take the most frequent"


def test_dead_nodes_are_closed_or_not_reached() -> None:
    """1/32 appears in layer 2 by the path down from 1/16; nothing leads there, or anywhere from there."""
    gates = all_open(2)
    gates[:, :, 2, DOWN] = 0  # from 1/16 to 1/32
    gates[:, 2, 0] = 0  # layer 1 at 1/4
    gates[0, 3, 1] = 0  # layer 2 at 1/8, of one image
    found = statistics(gates)
    # a path down leads on from an open node, be its own alpha 0: 1/32 is reached
    assert found.absent == [] and found.closed == [(1, 4)]
    gates[:, :, 2] = 0
    found = statistics(gates)
    assert found.absent == [(2, 32), (3, 32)]
    assert found.closed == [(1, 4), (1, 16), (2, 16), (3, 16)]
    assert found.open_nodes == pytest.approx((NODES - 6 - 0.5) / NODES)


def test_what_nothing_reaches_counts_as_closed() -> None:
    """In training it has a gate, which may be open."""
    gates = all_open(1)
    gates[:, 0] = 0  # the init cell hands its input on, to 1/4 alone
    gates[:, 1, 0] = 0
    gates[:, 2, 0] = 0
    found = statistics(gates)
    assert {scale for _, scale in found.closed} == {4}
    assert (0, 8) in found.absent and (1, 16) in found.absent
    gates[:, 1, 1, UP] = 0.0
    assert statistics(gates) == found  # nor do its alphas matter


def test_the_statistics_are_those_of_what_ran() -> None:
    net = random_network(gate_shift=-0.3)
    images = random_images(6, 64, 96)
    with torch.no_grad():
        own, forced = net(images).gates, net(images, gates=random_gates(net, 6, 0.5)).gates
    run = dynroute.optimize(net, backend="reference")
    for gates in (own, forced):
        counted = run(images, gates=gates).executed_nodes[:, 1:, :, 1] > 0  # cells
        found = statistics(gates)
        assert found.open_nodes * found.images * 21 == pytest.approx(int(counted.sum()))
        assert len(found.closed) + len(found.absent) == 21 - int(counted.any(0).sum())
        assert 1 < found.distinct <= 6
