"""What a reader sees first: what is wrong, then quality, work and time in one number each."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from dynroute.measure.alarms import Alarm
from dynroute.measure.results import RouteTimes
from dynroute.measure.verdict import disappoints, outcome, pays, sentence

# Of a row of timings: what its tile says besides.
_REMARKS = {"faster": "", "slower": ": slower", "same": ": no difference measured"}


def alarm_box(alarms: Sequence[Alarm], log: Sequence[dict[str, Any]]) -> str:
    """Each alarm with what it means and what to try, and a line of those that training had; empty without any.

    log: records of log.jsonl.
    """
    boxes = [
        f'<div class="alarm {alarm.severity}"><b>{_upper(alarm.message)}.</b><p>{_upper(alarm.meaning)}.</p>'
        f"<p>To try: {escape(alarm.advice)}.</p></div>"
        for alarm in alarms
    ]
    spans = _spans(log)
    said = f'<p class="note">Alarms in training: {escape("; ".join(spans))}.</p>' if spans else ""
    return f'<section class="alarms">{"".join(boxes)}{said}</section>' if boxes or said else ""


def time_sentences(rows: Sequence[RouteTimes]) -> str:
    """Whether skipping pays on the machine that was timed; where it does not, an alarm above says so."""
    said = [f"Batch {row.batch}: {escape(sentence(row))}." for row in rows if not disappoints(row)]
    return "".join(f"<p><b>{text}</b></p>" for text in said)


def time_tiles(rows: Sequence[RouteTimes]) -> list[tuple[str, str]]:
    """(value, words) of each row's time, and of the realised share where it means something."""
    tiles = [(f"{1 / r.time_ratio:.0%}", f"of the all-open time, batch {r.batch}{_REMARKS[outcome(r)]}") for r in rows]
    shares = [row.realised_share for row in rows if pays(row)]
    if shares:
        low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
        words = "realised share: of the speed-up that the saved work promises (1.00: all of it)"
        tiles.append((low if low == high else f"{low} to {high}", words))
    return tiles


def _spans(log: Sequence[dict[str, Any]]) -> list[str]:
    """When alarms began and ended in training."""
    said: dict[tuple[str, int], str] = {}
    for record in log:
        alarm = record.get("alarm")
        if not isinstance(alarm, dict):
            continue
        kind = str(alarm.get("kind", "")).replace("_", " ")
        if alarm.get("state") == "began":
            said[kind, record["step"]] = f"{kind} from step {record['step']} on"
        elif alarm.get("state") == "ended":
            said[kind, alarm.get("since", 0)] = f"{kind} from step {alarm.get('since')} to {record['step']}"
    return list(said.values())


def _upper(text: str) -> str:
    return escape(text[:1].upper() + text[1:])
