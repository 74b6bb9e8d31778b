"""Other runs' curves on this one's: the same network with other kernels, another seed, another budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from dynroute.report.svg import Series, line_chart

# Colours of the page, one for each run; more runs would not be told apart.
KINDS = ("one", "two", "three", "mark")
MOST = len(KINDS) - 1  # beside the report's own


@dataclass
class Run:
    """A run's name, its configuration as plain values, and the records of its log.jsonl."""

    name: str
    config: dict[str, Any]
    log: list[dict[str, Any]]

    def points(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of the records that have `key`, as a number."""
        found = [(float(r["step"]), float(r[key])) for r in self.log if isinstance(r.get(key), (int, float))]
        return [point for point in found if point[1] == point[1]]


def beside(runs: Sequence[Run]) -> str:
    """Two charts (loss, mIoU of training batches) and a table of where each run ended and how long it took.

    runs: the report's own first, up to MOST others behind it. Empty with one run.

    Raises ValueError for more runs than there are colours.
    """
    if len(runs) < 2:
        return ""
    if len(runs) > len(KINDS):
        raise ValueError(f"wanted at most {MOST} runs beside the report's own, got {len(runs) - 1}")

    def chart(title: str, key: str, unit: str = "") -> str:
        return line_chart(title, [Series(r.name, r.points(key), kind) for r, kind in zip(runs, KINDS)], unit)

    head = "".join(
        f"<th>{name}</th>"
        for name in ("run", "operators", "BatchNorm", "seed", "steps", "loss at the end", "mIoU on val", "wall time")
    )
    return (
        f'<h2>Beside other runs</h2><p class="soft">Over training steps, from the logs: means since the record before.'
        f'</p><div class="charts">{chart("Segmentation loss", "segmentation")}'
        f"{chart('mIoU of training batches', 'miou', '%')}</div>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(map(_row, runs))}</table></div>'
    )


def _row(run: Run) -> str:
    options, training = run.config.get("run", {}), run.config.get("train", {})
    cells = [run.name, str(options.get("ops", "")), str(training.get("bn", "")), str(options.get("seed", ""))]
    loss, miou, seconds = (run.points(key) for key in ("segmentation", "val_miou", "seconds"))
    steps = max((step for step, _ in loss), default=0.0)
    cells.append(f"{steps:,.0f}")
    cells.append(f"{loss[-1][1]:.4f}" if loss else "")
    cells.append(f"{miou[-1][1]:.1%}" if miou else "")
    if seconds:
        step, taken = seconds[-1]
        cells.append(f"{taken / 60:.1f} min, {1e3 * taken / step:.0f} ms a step")
    else:
        cells.append("")
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
