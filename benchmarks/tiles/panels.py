# ruff: noqa: RUF001  (signs of mathematics)
"""Panels of a picture of a kernel's tile: a map with what a program owns of it, its product, and what lies where.

Plain SVG text, made without a library.  A picture brings its own background, so that it reads on a light page and on a
dark one, and breaks its lines by the widths of a wide font, so that a narrower one leaves room instead of overlapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

PANEL, GAP, MARGIN = 336, 14, 18  # pixels: a panel's width, between panels, around them
INSET = 14  # of a panel's content
PAPER, CARD, EDGE, INK, SOFT = "#f4f5f7", "#ffffff", "#d4d8de", "#1d2026", "#5d6470"
LEVELS = {"memory": "#3d73b0", "L2": "#8667ac", "L1": "#d9822b", "registers": "#3c9350"}
LEVEL_NAMES = {"memory": "memory", "L2": "L2 cache", "L1": "L1 cache, shared memory", "registers": "registers"}
TINTS = {"memory": "#d7e4f3", "L2": "#e4dbf0", "L1": "#f8e0c6", "registers": "#cde8d3"}

# Widths of DejaVu Sans, in units of the font's size: what browsers show in its place is as wide at most.
NARROW, WIDE = dict.fromkeys("ijl.,:;'|!", 0.34), dict.fromkeys("mwMW@%", 0.98)
WIDTHS = {
    **dict.fromkeys("frtI()[]-/", 0.41), **dict.fromkeys("×+=<>→²∑", 0.84), **dict.fromkeys("JLETFszcvxyk", 0.6),
    **NARROW, **WIDE, " ": 0.32, "\N{NO-BREAK SPACE}": 0.32,
}  # fmt: skip
BOLD = 1.14  # times as wide


def width(text: str, size: float, bold: bool = False) -> float:
    return size * sum(WIDTHS.get(letter, 0.72 if letter.isupper() else 0.64) for letter in text) * (BOLD if bold else 1)


def wrap(text: str, size: float, room: float, bold: bool = False) -> list[str]:
    """Lines that fit the room. Raises ValueError if a single word does not."""
    lines = [""]
    for word in text.replace(" × ", "\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}").split(" "):
        if width(word, size, bold) > room:
            raise ValueError(f"{word!r} is wider than {room:.0f} pixels")
        longer = f"{lines[-1]} {word}".strip()
        if width(longer, size, bold) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def write(x: float, y: float, text: str, size: float = 12, colour: str = INK, bold: bool = False, at: str = "") -> str:
    style = ' font-weight="bold"' if bold else ""
    anchor = f' text-anchor="{at}"' if at else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}"{style}{anchor}>{escape(text)}</text>'


def box(
    x: float, y: float, w: float, h: float, fill: str, stroke: str = "none", line: float = 1, round_by: float = 0
) -> str:
    corner = f' rx="{round_by:g}"' if round_by else ""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}" '
        f'stroke-width="{line:g}"{corner}/>'
    )


def size_of(count: float) -> str:
    """Bytes in words."""
    if count < 1024:
        return f"{count:.0f} B"
    number, unit = (count / 1024, "KB") if count < 1 << 20 else (count / (1 << 20), "MB")
    return f"{number:.1f}".removesuffix(".0") + f" {unit}"


class Area(NamedTuple):
    """A rectangle of pixels, in a map or among the cells of an enlargement."""

    x: int
    y: int
    w: int
    h: int
    level: str = "registers"


class Held(NamedTuple):
    """What lies at a level of the memory; bytes None where it is of the map's size."""

    level: str
    what: str
    bytes: float | None = None


class Panel:
    """One device's column of a picture; what is added to it goes below what is there."""

    def __init__(self, title: str, unit: str) -> None:
        self.marks: list[str] = []
        self.y = 0.0
        self.head(title, unit)

    def head(self, title: str, unit: str) -> None:
        """A device's name, and what it cuts the work into."""
        self.y += 26
        self.marks.append(write(INSET, self.y, title, 15, bold=True))
        self.y += 6
        self.say(unit, 12, SOFT)
        self.y += 8

    def say(self, text: str, size: float = 12, colour: str = INK) -> None:
        """A paragraph."""
        for line in wrap(text, size, PANEL - 2 * INSET):
            self.y += size * 1.32
            self.marks.append(write(INSET, self.y, line, size, colour))

    def map(self, size: tuple[int, int], areas: Sequence[Area], zoom: Cells | None = None, name: str = "map") -> None:
        """A map, a pixel to a pixel (or as much smaller as it has to be), and beside it a piece of it enlarged."""
        columns, rows = size
        scale = min(1.0, 128 / columns, 84 / rows)
        w, h, top = columns * scale, rows * scale, self.y + 6
        self.marks.append(box(INSET, top, w, h, "#eceff3", "#9aa2ae"))
        for area in areas:
            at = INSET + area.x * scale, top + area.y * scale, max(area.w * scale, 2), max(area.h * scale, 2)
            self.marks.append(box(*at, LEVELS[area.level]))
        self.marks.append(write(INSET, top + h + 14, f"{name}, {rows} × {columns}", 11, SOFT))
        if zoom is not None:
            left = INSET + 128 + 18
            self.marks += zoom.drawn(left, top, PANEL - INSET - left)
        self.y = top + max(h + 18, zoom.height(PANEL - INSET * 2 - 146) if zoom else 0)

    def enlarged(self, zoom: Cells, centres: Sequence[tuple[int, int]] = ()) -> None:
        """Cells without a map; centres of coarser pixels lie at corners of cells."""
        room = PANEL - 2 * INSET
        left, top, side = INSET, self.y + 6, zoom.cell(room)
        self.marks += zoom.drawn(left, top, room)
        for x, y in centres:
            self.marks.append(f'<circle cx="{left + x * side:g}" cy="{top + y * side:g}" r="4" fill="{INK}"/>')
        self.y = top + zoom.height(room)

    def product(
        self, m: int, k: int, n: int, step: int, block: tuple[int, int], levels: str, text: str, most: int = 108
    ) -> None:
        """A [m, k] times W [k, n]: what a step through k takes, and a block of the sums.

        levels: of A, of W and of the sums, comma separated.
        """
        of_a, of_w, of_sums = levels.split(",")
        scale = min(1.0, most / (k + m + 8), 150 / (k + n + 8))
        k_, m_, n_, gap = k * scale, m * scale, n * scale, 6
        left, top = INSET, self.y + 20
        right, below = left + k_ + gap, top + k_ + gap
        marks = [
            box(left, below, k_, m_, TINTS[of_a], LEVELS[of_a]),
            box(left, below, step * scale, m_, LEVELS[of_a]),
            box(right, top, n_, k_, TINTS[of_w], LEVELS[of_w]),
            box(right, top, n_, step * scale, LEVELS[of_w]),
            box(right, below, n_, m_, TINTS[of_sums], LEVELS[of_sums]),
            box(right, below, block[1] * scale, block[0] * scale, LEVELS[of_sums]),
            write(left, below + m_ + 12, f"A {m} × {k}", 10.5, SOFT),
            write(right, top - 3, f"W {k} × {n}", 10.5, SOFT),
        ]
        self.marks += marks
        beside, at = right + max(n_, 62) + 12, top + 6
        for line in wrap(text, 11.5, PANEL - INSET - beside):
            at += 15
            self.marks.append(write(beside, at, line, 11.5))
        self.y = max(below + m_ + 14, at) + 4

    def flow(self, rows: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Rows of boxes (text, level), with arrows from each to the one below it, or to all if there are more or fewer;
        a "" is a gap that an arrow passes through."""
        starts: list[tuple[float, float]] = []
        for number, row in enumerate(rows):
            room = (PANEL - 2 * INSET - 10 * (len(row) - 1)) / len(row)
            lines = [wrap(text, 11.5, room - 8) if text else [] for text, _ in row]
            high = 15 * max(len(line) for line in lines) + 9
            top, ends = self.y + (16 if number else 6), []
            for place, ((text, level), words) in enumerate(zip(row, lines)):
                left = INSET + place * (room + 10)
                ends.append(left + room / 2)
                if not text:
                    continue
                self.marks.append(box(left, top, room, high, TINTS[level], LEVELS[level], 1.3, 4))
                for i, word in enumerate(words):
                    self.marks.append(write(ends[-1], top + 16 + 15 * i, word, 11.5, at="middle"))
            for i, (x, y) in enumerate(starts):
                to = [i] if len(starts) == len(row) else range(len(row))
                self.marks += [arrow(x, y + 1, ends[j], top - 2) for j in to if row[j][0]]
            self.y = top + high
            below = [(end, self.y) for end in ends]
            if len(starts) == len(row):
                below = [starts[i] if not text else below[i] for i, (text, _) in enumerate(row)]
            starts = below
        self.y += 4

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> None:
        """Small text in columns of so many pixels; the first row is its head."""
        for number, row in enumerate([head, *rows]):
            self.y += 16
            left = float(INSET)
            for text, wide in zip(row, widths):
                if width(text, 11.5, number == 0) > wide:
                    raise ValueError(f"{text!r} is wider than {wide} pixels")
                self.marks.append(write(left, self.y, text, 11.5, SOFT if number == 0 else INK, number == 0))
                left += wide
        self.y += 6

    def holds(self, entries: Sequence[Held]) -> None:
        """What lies where, with its size."""
        self.y += 6
        for level, what, count in entries:
            amount = "" if count is None else size_of(count)
            room = PANEL - 2 * INSET - 18 - (width(amount, 12, True) + 8 if amount else 0)
            self.marks.append(box(INSET, self.y + 5, 10, 10, LEVELS[level]))
            if amount:
                self.marks.append(write(PANEL - INSET, self.y + 14, amount, 12, bold=True, at="end"))
            for line in wrap(what, 12, room):
                self.y += 15
                self.marks.append(write(INSET + 18, self.y - 1, line, 12))
            self.y += 4


class Cells(NamedTuple):
    """An enlargement: `columns` x `rows` pixels that are read, and of these the marked ones."""

    columns: int
    rows: int
    marked: Sequence[Area]
    text: str
    largest: float = 10

    def cell(self, room: float) -> float:
        return min(self.largest, room / self.columns)

    def height(self, room: float) -> float:
        return self.rows * self.cell(room) + 15 * len(wrap(self.text, 11, room)) + 8

    def drawn(self, left: float, top: float, room: float) -> Iterator[str]:
        side = self.cell(room)
        level = {}
        for area in self.marked:
            for y in range(area.y, area.y + area.h):
                for x in range(area.x, area.x + area.w):
                    level[x, y] = area.level
        for y in range(self.rows):
            for x in range(self.columns):
                fill = LEVELS[level[x, y]] if (x, y) in level else TINTS["memory"]
                yield box(left + x * side, top + y * side, side, side, fill, "#ffffff", 0.8)
        for i, line in enumerate(wrap(self.text, 11, room)):
            yield write(left, top + self.rows * side + 15 * (i + 1), line, 11, SOFT)


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return (
        f'<path d="M {x:g} {y:g} L {to_x:g} {to_y:g}" stroke="{SOFT}" stroke-width="1.2" fill="none" '
        'marker-end="url(#head)"/>'
    )


def picture(title: str, subtitle: str, panels: Sequence[Panel]) -> str:
    """The panels side by side, as high as the highest, below a title and above the meaning of the colours."""
    across = 2 * MARGIN + len(panels) * PANEL + (len(panels) - 1) * GAP
    head = [write(MARGIN, 34, title, 19, bold=True)]
    y = 38.0
    for line in wrap(subtitle, 12.5, across - 2 * MARGIN):
        y += 17
        head.append(write(MARGIN, y, line, 12.5, SOFT))
    if width(title, 19, True) > across - 2 * MARGIN:
        raise ValueError(f"{title!r} is wider than the picture")
    top, high = y + 14, max(panel.y for panel in panels) + 12
    parts = []
    for i, panel in enumerate(panels):
        left = MARGIN + i * (PANEL + GAP)
        inside = "\n".join([box(0, 0, PANEL, high, CARD, EDGE, 1, 8), *panel.marks])
        parts.append(f'<g transform="translate({left:g} {top:g})">\n{inside}\n</g>')
    y, x = top + high + 26, float(MARGIN)
    legend = []
    for level, name in LEVEL_NAMES.items():
        legend += [box(x, y - 10, 12, 12, LEVELS[level]), write(x + 18, y, name, 12, SOFT)]
        x += 18 + width(name, 12) + 22
    legend += [box(x, y - 10, 12, 12, TINTS["memory"], "#b9c7d8"), write(x + 18, y, "read, owned by others", 12, SOFT)]
    high = y + 16
    marker = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M 0 0 L 8 4 L 0 8 z" fill="{SOFT}"/></marker></defs>'
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across:g} {high:g}" width="{across:g}" '
        f'height="{high:g}" font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{escape(title)}</title>", marker, box(0, 0, across, high, PAPER, round_by=10), *head, *parts, *legend,
        "</svg>", "",
    ])  # fmt: skip
