"""Node states, marks and drawings of routes."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

import dynroute
from dynroute.measure.opened import open_model
from dynroute.report.svg import probability_marks, route_map, sample_marks
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
