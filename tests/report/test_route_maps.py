"""Node states, marks and drawings of routes; charts; choice of images; timing patterns."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import dynroute
from dynroute.measure.observe import Sample
from dynroute.measure.opened import open_model, space_macs
from dynroute.measure.timing import interleave, random_patterns
from dynroute.report.choose import choose, error_map
from dynroute.report.palette import class_map, data_uri, overlay, palette
from dynroute.report.svg import Series, line_chart, probability_marks, route_map, sample_marks, scatter
from dynroute.space.routing import node_states
from dynroute.space.wiring import build_space, path_exists


def some_gates(layers: int, seed: int) -> torch.Tensor:
    """Random alphas [L+1,4,3], a third of them shut, and a fifth of the nodes."""
    g = torch.Generator().manual_seed(seed)
    alphas = (torch.rand(layers + 1, 4, 3, generator=g) - 0.33).clamp(min=0) * path_exists(layers)
    return alphas * (torch.rand(layers + 1, 4, 1, generator=g) > 0.2)


@pytest.mark.parametrize("seed", range(6))
def test_node_states_are_the_runtimes(seed: int) -> None:
    net = dynroute.create_model("dynamic_tiny").eval()
    out = open_model(net, "reference")(torch.randn(1, 3, 64, 64), gates=some_gates(6, seed))
    opened, present = node_states(out.gates[0])
    # an open node's cell was executed, no other's
    assert torch.equal(opened, out.executed_nodes[0, ..., 1] > 0)
    assert bool((present | ~opened).all())


@pytest.mark.parametrize("layers", [4, 16, 33])
def test_route_map_draws_every_node_and_path_once(layers: int) -> None:
    gates = some_gates(layers, 0)
    opened, present = node_states(gates)
    gates = gates * present[..., None]
    root = ET.fromstring(route_map(sample_marks(gates, torch.zeros(layers + 1, 4, 5)), "a <route>"))
    kinds = [element.get("class") for element in root.iter()]
    assert kinds.count("fill") + kinds.count("absent") == sum(len(row) for row in build_space(layers))
    assert kinds.count("fill") == int(present.sum())
    lines = sum(kinds.count(kind) for kind in ("up", "keep", "down", "shut", "passed"))
    assert lines == int(path_exists(layers).sum())
    assert kinds.count("passed") == int((present & ~opened).sum())
    assert sum(element.tag.endswith("title") for element in root.iter()) == lines + len(
        [kind for kind in kinds if kind in ("fill", "absent")]
    )


def test_line_width_is_alpha() -> None:
    gates = torch.zeros(5, 4, 3)
    gates[0, 0, 1], gates[1, 0, 1], gates[2, 0, 1] = 1.0, 0.5, 0.1
    root = ET.fromstring(route_map(sample_marks(gates, torch.zeros(5, 4, 5)), "route"))
    widths = [float(e.get("stroke-width", 0)) for e in root.iter() if e.get("class") == "keep"]
    assert len(widths) == 3 and widths == sorted(widths, reverse=True)


def test_probability_map_says_how_often() -> None:
    gates = torch.zeros(4, 7, 4, 3)
    gates[:, 0, 0, 1] = 1.0
    gates[0, 1, 0, 1] = 0.5
    text = route_map(probability_marks(gates), "probability")
    assert "layer 0, 1/4: computed in 25.0% of the images" in text
    assert "layer 0, 1/4, keep: open in 25.0% of the images, mean alpha 0.12" in text


def test_charts_are_well_formed() -> None:
    root = ET.fromstring(
        line_chart("Loss & cost", [Series("a", [(0, 2.0), (10, 0.5)], "one"), Series("b", [(10, 1.0)], "two")])
    )
    assert sum(e.get("class") == "one" and e.tag.endswith("polyline") for e in root.iter()) == 1
    assert line_chart("empty", [Series("a", [], "one")]) == ""
    ET.fromstring(line_chart("flat", [Series("a", [(5, 0.0), (6, 0.0)], "one")], "%"))
    ET.fromstring(scatter([(0.5, 0.9, "a"), (0.5, 0.9, "b")], "work", "right", {1: "hard"}))


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


def test_colours() -> None:
    assert len({tuple(colour) for colour in palette(60)[:60].tolist()}) == 60
    labels = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    shown = class_map(labels, 3)
    assert np.array_equal(np.asarray(shown), labels)
    image = np.full((2, 2, 3), 200, dtype=np.uint8)
    assert overlay(image, labels, 3).size == (2, 2)
    assert data_uri(shown, 320, photo=False).startswith("data:image/png;base64,")
    wrong = error_map(image, np.zeros((2, 2), np.uint8), labels)
    assert (wrong[0, 1] == wrong[1, 0]).all() and not (wrong[0, 0] == wrong[0, 1]).all()


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


def test_space_macs_leaves_gates_and_the_init_cell_out() -> None:
    nodes = torch.ones(7, 4, 5, dtype=torch.int64)
    assert int(space_macs(nodes)) == 7 * 4 * 4 - 4
