"""Line charts and scatter plots."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from dynroute.report.svg import Series, line_chart, scatter


def test_charts_are_well_formed() -> None:
    root = ET.fromstring(
        line_chart("Loss & cost", [Series("a", [(0, 2.0), (10, 0.5)], "one"), Series("b", [(10, 1.0)], "two")])
    )
    assert sum(e.get("class") == "one" and e.tag.endswith("polyline") for e in root.iter()) == 1
    assert line_chart("empty", [Series("a", [], "one")]) == ""
    ET.fromstring(line_chart("flat", [Series("a", [(5, 0.0), (6, 0.0)], "one")], "%"))
    ET.fromstring(scatter([(0.5, 0.9, "a"), (0.5, 0.9, "b")], "work", "right", {1: "hard"}))
