"""Route maps and charts as inline SVG; colours are the page's CSS variables, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import torch
from torch import Tensor

from dynroute.space.routing import is_path_open, node_states
from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, PATH_NAMES, SCALES, UP, Node, build_space

# Geometry of a route map, in SVG units.
LEFT, TOP, BOTTOM, ROW = 46, 14, 40, 46
NARROWEST, WIDEST, WIDTH = 26.0, 128.0, 1040.0
RADIUS = 7.0
THINNEST, THICKEST = 0.8, 5.5
_STEP = {UP: -1, KEEP: 0, DOWN: 1}


@dataclass
class Marks:
    """What a route map shows at each node and path.

    Attributes:
        node: float [L+1,4]: 1 computed, 0 not; between, how often.
        present: bool [L+1,4]: False draws the node faint.
        path: float [L+1,4,3]: line width, 0..1.
        passed: bool [L+1,4]: a closed cell that hands its input on, drawn as a thin dashed keep.
        node_text, path_text: tooltips by place.
    """

    node: Tensor
    present: Tensor
    path: Tensor
    passed: Tensor
    node_text: dict[tuple[int, int], str] = field(default_factory=dict)
    path_text: dict[tuple[int, int, int], str] = field(default_factory=dict)


def sample_marks(gates: Tensor, executed: Tensor) -> Marks:
    """A sample's route: gates [L+1,4,3], executed_nodes [L+1,4,5]."""
    opened, present = node_states(gates)
    marks = Marks(opened.double(), present, gates.double(), present & ~opened)
    for node in _nodes(gates):
        r, s = node.row, node.scale
        state = (
            "open" if opened[r, s] else "closed: hands its input on" if present[r, s] else "absent: nothing reaches it"
        )
        work = f", {float(executed[r, s].sum()) / 1e6:.3g} M MACs executed" if opened[r, s] else ""
        marks.node_text[r, s] = f"{_place(r, s)}: {state}{work}"
        for path in _paths(node):
            marks.path_text[r, s, path] = f"{_place(r, s)}, {PATH_NAMES[path]}: alpha {float(gates[r, s, path]):.2f}"
    return marks


def probability_marks(gates: Tensor) -> Marks:
    """How often each cell and path is open over a data set, and mean alphas: gates [M,L+1,4,3] of M samples."""
    states = [node_states(sample) for sample in gates]
    node = torch.stack([opened for opened, _ in states]).double().mean(0)
    reached = torch.stack([present for _, present in states]).any(0)
    probability, alpha = is_path_open(gates).double().mean(0), gates.double().mean(0)
    marks = Marks(node, reached, probability, torch.zeros_like(reached))
    for place in _nodes(probability):
        r, s = place.row, place.scale
        marks.node_text[r, s] = f"{_place(r, s)}: computed in {float(node[r, s]):.1%} of the images"
        for path in _paths(place):
            share, mean = float(probability[r, s, path]), float(alpha[r, s, path])
            marks.path_text[r, s, path] = (
                f"{_place(r, s)}, {PATH_NAMES[path]}: open in {share:.1%} of the images, mean alpha {mean:.2f}"
            )
    return marks


def route_map(marks: Marks, label: str) -> str:
    """Layers across, scales down."""
    layers = marks.node.shape[0] - 1
    step = min(max((WIDTH - LEFT) / (layers + 2), NARROWEST), WIDEST)
    width, height = LEFT + step * (layers + 1.6), TOP + ROW * (SCALES - 1) + BOTTOM + RADIUS

    def at(row: float, scale: float) -> tuple[float, float]:
        return LEFT + step * (row + 0.4), TOP + RADIUS + ROW * scale

    out = [
        f'<svg class="routes" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{width * 1.1:.0f}px">'
    ]
    for s in range(SCALES):
        out.append(f'<text class="axis" x="{LEFT - 16}" y="{at(0, s)[1] + 4:.1f}" text-anchor="end">1/{4 << s}</text>')
    every = 1 if step >= 40 else 2 if step >= 30 else 4
    for row in range(layers + 1):
        if row == 0 or (row - 1) % every == 0:
            out.append(
                f'<text class="axis" x="{at(row, 0)[0]:.1f}" y="{height - 6:.0f}" text-anchor="middle">'
                f"{'init' if row == 0 else row - 1}</text>"
            )
    closed, lines, dots = [], [], []
    for node in _nodes(marks.node):
        r, s = node.row, node.scale
        x, y = at(r, s)
        for path in _paths(node):
            to_x, to_y = at(r + (0.75 if r == layers else 1), s + _STEP[path])
            value = float(marks.path[r, s, path])
            title = f"<title>{escape(marks.path_text.get((r, s, path), ''))}</title>"
            ends = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
            if value > CLOSED_BELOW:
                stroke = THINNEST + (THICKEST - THINNEST) * min(value, 1.0)
                lines.append(f'<line class="{PATH_NAMES[path]}" {ends} stroke-width="{stroke:.2f}">{title}</line>')
            elif path == KEEP and bool(marks.passed[r, s]):
                lines.append(f'<line class="passed" {ends}>{title}</line>')
            else:
                closed.append(f'<line class="shut" {ends}>{title}</line>')
        title = f"<title>{escape(marks.node_text.get((r, s), ''))}</title>"
        value = float(marks.node[r, s])
        if not bool(marks.present[r, s]):
            dots.append(f'<circle class="absent" cx="{x:.1f}" cy="{y:.1f}" r="3">{title}</circle>')
        else:
            dots.append(
                f'<circle class="cell" cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}"/><circle class="fill" '
                f'cx="{x:.1f}" cy="{y:.1f}" r="{RADIUS}" fill-opacity="{value:.2f}">{title}</circle>'
            )
    return "".join([*out, *closed, *lines, *dots, "</svg>"])


@dataclass
class Series:
    """A line of a chart: points (x, y), a CSS class for its colour."""

    name: str
    points: list[tuple[float, float]]
    kind: str
    dashed: bool = False


def line_chart(title: str, series: Sequence[Series], unit: str = "") -> str:
    """A small chart over steps with its own axes and legend; the vertical axis starts at 0."""
    w, h, left, right, top, bottom = 460, 230, 46, 12, 34, 28
    points = [p for one in series for p in one.points]
    if not points:
        return ""
    x1 = max(p[0] for p in points) or 1.0
    low, high = min(p[1] for p in points), max(p[1] for p in points)
    ticks = _ticks(min(0.0, low), high)
    y0, y1 = ticks[0], ticks[-1]

    def px(x: float) -> float:
        return left + (w - left - right) * x / x1

    def py(y: float) -> float:
        return h - bottom - (h - top - bottom) * (y - y0) / ((y1 - y0) or 1.0)

    out = [f'<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        out.append(f'<line class="grid" x1="{left}" x2="{w - right}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        out.append(
            f'<text class="axis" x="{left - 6}" y="{py(tick) + 4:.1f}" text-anchor="end">{_number(tick, unit)}</text>'
        )
    for tick in _ticks(0, x1):
        if tick <= x1:
            out.append(f'<text class="axis" x="{px(tick):.1f}" y="{h - 8}" text-anchor="middle">{tick:g}</text>')
    out.append(f'<text class="name" x="0" y="14">{escape(title)}</text>')
    x_legend: float = w - right
    for one in reversed([one for one in series if one.points]):
        x_legend -= 7.0 * len(one.name)
        out.append(f'<text class="axis" x="{x_legend:.0f}" y="14">{escape(one.name)}</text>')
        x_legend -= 20
        dash = ' stroke-dasharray="3 3"' if one.dashed else ""
        out.append(
            f'<line class="{one.kind}" x1="{x_legend}" x2="{x_legend + 15}" y1="10" y2="10" stroke-width="2.5"{dash}/>'
        )
        x_legend -= 12
        if len(one.points) == 1:
            x, y = one.points[0]
            out.append(f'<circle class="dot {one.kind}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="4"/>')
        else:
            path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in one.points)
            out.append(f'<polyline class="{one.kind}" points="{path}" fill="none" stroke-width="1.8"{dash}/>')
    return "".join([*out, "</svg>"])


def scatter(points: Sequence[tuple[float, float, str]], x_label: str, y_label: str, marked: dict[int, str]) -> str:
    """Shares (x, y in 0..1) with a tooltip each; `marked` points are larger and named."""
    w, h, left, right, top, bottom = 460, 230, 46, 12, 34, 40
    xs, ys = _ticks(min(p[0] for p in points), max(p[0] for p in points)), _ticks(min(p[1] for p in points), 1.0)

    def px(x: float) -> float:
        return left + (w - left - right) * (x - xs[0]) / ((xs[-1] - xs[0]) or 1.0)

    def py(y: float) -> float:
        return h - bottom - (h - top - bottom) * (y - ys[0]) / ((ys[-1] - ys[0]) or 1.0)

    out = [
        f'<svg class="chart" viewBox="0 0 {w} {h}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">'
    ]
    for y in ys:
        out.append(f'<line class="grid" x1="{left}" x2="{w - right}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>')
        out.append(f'<text class="axis" x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{_number(y, "%")}</text>')
    for x in xs:
        out.append(
            f'<text class="axis" x="{px(x):.1f}" y="{h - bottom + 16}" text-anchor="middle">{_number(x, "%")}</text>'
        )
    out.append(f'<text class="name" x="0" y="14">{escape(y_label)}, image by image</text>')
    out.append(
        f'<text class="axis" x="{(left + w - right) / 2:.0f}" y="{h - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    for i, (x, y, name) in enumerate(points):
        kind = "point marked" if i in marked else "point"
        out.append(
            f'<circle class="{kind}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="{5 if i in marked else 3.5}">'
            f"<title>{escape(name)}: {x:.1%} of the work, {y:.1%} of pixels right</title></circle>"
        )
    for i, word in marked.items():
        x, y, _ = points[i]
        left_half = px(x) < w / 2
        out.append(
            f'<text class="axis strong" x="{px(x) + (8 if left_half else -8):.1f}" y="{py(y) + 4:.1f}" '
            f'text-anchor="{"start" if left_half else "end"}">{escape(word)}</text>'
        )
    return "".join([*out, "</svg>"])


def _nodes(table: Tensor) -> list[Node]:
    return [node for row in build_space(table.shape[0] - 1) for node in row]


def _paths(node: Node) -> list[int]:
    return [path for path in (UP, KEEP, DOWN) if node.paths[path]]


def _place(row: int, scale: int) -> str:
    return f"{'init cell' if row == 0 else f'layer {row - 1}'}, 1/{4 << scale}"


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover low..high, three to seven of them."""
    if high <= low:
        high = low + (abs(low) * 0.1 or 1.0)
    raw = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value * 100:.10g}%"
    return f"{value:.6g}{unit}"
