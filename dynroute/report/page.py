"""The report: one HTML file that needs nothing else, with images, route maps, curves and the table of savings."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from dynroute.data import IGNORE
from dynroute.measure.alarms import Alarm, in_words
from dynroute.measure.results import Bench, Findings, RouteStatistics, Sample, Spread
from dynroute.measure.verdict import pays, sentence
from dynroute.models.config import NetworkConfig
from dynroute.report.beside import Run, beside
from dynroute.report.choose import error_map
from dynroute.report.headline import alarm_box, time_sentences, time_tiles
from dynroute.report.palette import class_map, data_uri, palette
from dynroute.report.svg import Series, line_chart, probability_marks, route_map, sample_marks, scatter

THUMBNAIL = 320
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass
class Picture:
    """An image that is shown: its sample, why it was chosen (a word), image uint8 [H,W,3], truth and prediction uint8
    [H,W]."""

    sample: Sample
    word: str
    image: np.ndarray
    truth: np.ndarray
    labels: np.ndarray


@dataclass
class Material:
    """What a report is made of.

    Attributes:
        title: the run's name.
        network: what the model is.
        classes: their names.
        images: how many there are to validate on.
        findings: of the images that were run; routes: that these took.
        alarms: what is wrong, the worst first.
        pictures: those that are shown, from least to most work.
        config: the run's configuration, plain values.
        evaluation: eval.json; log: records of log.jsonl; bench: what `dynroute bench` found.
        provenance: of this report.
        others: runs whose curves are drawn on this one's.
    """

    title: str
    network: NetworkConfig
    classes: list[str]
    images: int
    findings: Findings
    routes: RouteStatistics
    alarms: list[Alarm]
    pictures: list[Picture]
    config: dict[str, Any]
    evaluation: dict[str, Any]
    log: list[dict[str, Any]]
    bench: Bench
    provenance: dict[str, Any]
    others: list[Run] = field(default_factory=list)


def write_report(material: Material, out: Path) -> Path:
    """Writes the report; returns `out`."""
    body = "\n".join(
        [
            _header(material),
            _savings(material),
            _images(material),
            _probabilities(material),
            _curves(material),
            beside([_own(material), *material.others]),
            _classes(material),
            _footer(material),
        ]
    )
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"{material.title}: dynroute report"), body=body
    )
    out.write_text(page, encoding="utf-8")
    return out


def _header(m: Material) -> str:
    f, c = m.findings, m.network
    open_share = f.mean("executed") / f.mean("full_executed")
    tiles = [
        (f"{m.evaluation.get('miou') or f.miou:.1%}", f"mIoU on {m.evaluation.get('images', len(f.samples))} images"),
        (f"{open_share:.0%}", "of the all-open multiply-accumulates executed"),
    ]
    tiles += time_tiles(m.bench.results)
    data, schedule = m.config.get("data", {}), m.config.get("schedule", {})
    budget, machine = m.config.get("budget", {}), m.evaluation.get("machine", {})
    facts = [
        (
            "model",
            f"{m.config.get('model', {}).get('name', '')}: {c.layers} layers, {c.channels} channels at 1/4, "
            f"{c.gate} gates{' on quarter-size inputs' if c.small_gate else ''}, {c.num_classes} classes",
        ),
        ("data", f"{data.get('kind')} {data.get('root') or ''} ({m.images} validation images)"),
        (
            "training",
            f"{schedule.get('steps')} steps of {m.config.get('optimiser', {}).get('batch')} crops "
            f"of {'x'.join(map(str, data.get('crop', [])))}",
        ),
        (
            "budget",
            f"weight {budget['weight']:g}, target {budget['target']:.0%} of the space's "
            f"{budget.get('measure', 'expected')} cost, all open"
            if budget.get("weight")
            else "none",
        ),
        ("trained on", _machine(machine)),
        ("commit", (m.evaluation.get("commit") or "")[:12] or "not in a checkout"),
    ]
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    boxes = "".join(f'<div class="tile"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in tiles)
    return (
        f'<h1>{escape(m.title)}</h1><p class="soft">Dynamically routed segmentation: for each image, gates choose '
        f"which cells and scale changes are computed.</p>{alarm_box(m.alarms, m.log)}"
        f'{time_sentences(m.bench.results)}<div class="tiles">{boxes}</div><dl>{items}</dl>'
    )


def _savings(m: Material) -> str:
    f = m.findings
    full = f.mean("full_expected")
    rows = [
        _row(
            "Expected cost of the space, MFLOPs",
            full,
            f.mean("expected"),
            "computed from the alphas",
        ),
        _row("Real cost of the space, MFLOPs", full, f.shares[1] * full, "computed from open and closed"),
        _row(
            "Real cost as the paper counts, MFLOPs",
            f.mean("full_real"),
            f.mean("real"),
            "computed from open and closed",
        ),
        _row(
            "Executed in the space, M MACs", f.mean("full_space") / 1e6, f.mean("space") / 1e6, "counted by the kernels"
        ),
        _row(
            "Executed in all, M MACs", f.mean("full_executed") / 1e6, f.mean("executed") / 1e6, "counted by the kernels"
        ),
    ]
    for result in m.bench.results:
        ms = result.ms_per_image
        how = f"timed, {result.images} images, {result.repeats} rounds"
        label = f"Time per image at batch {result.batch}, ms"
        rows.append(_row(label, ms["all_open"].median, ms["routed"].median, how, ms["all_open"], ms["routed"]))
    shares = []
    for result in m.bench.results:
        low, high = result.realised_spread
        eager = result.ms_per_image.get("eager")
        said = [sentence(result)]
        if pays(result):
            said.append(f"realised share {result.realised_share:.2f} (p10 to p90: {low:.2f} to {high:.2f})")
        if eager:
            said.append(f"eager PyTorch, channels_last: {eager.median:.2f} ms")
        shares.append(f"<li>Batch {result.batch}: {escape('; '.join(said))}.</li>")
    machine = _machine(m.bench.machine or m.provenance["machine"])
    return (
        "<h2>What routing saved</h2>"
        f'<p class="soft">Means over {len(f.samples)} validation images, batches of one.  Computed: from the gates by '
        "the paper's formula.  Counted: added up by the runtime as convolutions finished.  Timed: by the clock, the "
        "contestants taking turns; medians.</p>"
        '<div class="scroll"><table><tr><th></th><th>all open</th><th>routed</th><th>routed / all open</th>'
        f'<th style="text-align:left;padding-left:12px">how it is known</th></tr>{"".join(rows)}</table></div>'
        f"<ul>{''.join(shares)}</ul>"
        '<p class="note">Realised share = (T_open / T_routed) / (work_open / work_routed), work = executed MACs of the '
        "timed images; there is none where hardly any work was saved, or no time.  The space is the grid's cells and "
        "all paths; stem, decoder and gates come on top and are never "
        "skipped (but an absent node's gate is).  All open: the same network with every gate given as 1, so that no "
        f"gate is computed.  Timed on {escape(machine)}, threads: {m.bench.threads}, "
        f"{escape(m.bench.backend)}.</p>"
    )


def _row(
    label: str,
    full: float,
    routed: float,
    how: str,
    full_spread: Spread | None = None,
    routed_spread: Spread | None = None,
) -> str:
    def cell(value: float, spread: Spread | None) -> str:
        if spread is None:
            return f"<td>{value:,.1f}</td>"
        return f'<td title="p10 {spread.p10:.2f}, p90 {spread.p90:.2f}">{value:,.2f}</td>'

    return (
        f"<tr><td>{escape(label)}</td>{cell(full, full_spread)}{cell(routed, routed_spread)}"
        f'<td>{routed / full:.1%}</td><td class="how">{escape(how)}</td></tr>'
    )


def _images(m: Material) -> str:
    classes = m.classes
    colours = palette(len(classes))
    legend = "".join(
        f'<span><i class="swatch" style="background:rgb({r},{g},{b})"></i>{escape(name)}</span>'
        for name, (r, g, b) in zip(classes, colours[: len(classes)].tolist())
    )
    blocks = [_image(picture, len(classes)) for picture in m.pictures]
    return (
        "<h2>Images and their routes</h2>"
        f'<p class="soft">Chosen by executed work out of {len(m.findings.samples)} validation images.  In a route map, '
        "layers go across and scales down; hover for the numbers.</p>"
        f'<div class="legend">{legend}<span><i class="swatch" style="background:rgb(214,48,49)"></i>'
        f'wrong (error map)</span></div><div class="legend">{_route_legend()}</div>{"".join(blocks)}'
    )


def _image(picture: Picture, classes: int) -> str:
    sample, image, truth, labels = picture.sample, picture.image, picture.truth, picture.labels
    wrong = Image.fromarray(error_map(image, labels, truth))
    pictures = [
        ("input", Image.fromarray(image), True),
        ("truth", class_map(np.where(truth == IGNORE, 255, truth).astype(np.uint8), classes), False),
        ("prediction", class_map(labels, classes), False),
        ("errors", wrong, True),
    ]
    figures = "".join(
        f'<figure><img{"" if photo else " class=flat"} src="{data_uri(shown, THUMBNAIL, photo)}" alt="{name} of '
        f'{escape(sample.name)}"><figcaption>{name}</figcaption></figure>'
        for name, shown, photo in pictures
    )
    right = f"{sample.right:.1%} of pixels right" if sample.right is not None else "nothing labelled"
    return (
        f'<section class="image"><h3>{escape(picture.word)} <small>{escape(sample.name)}, '
        f"{image.shape[1]}x{image.shape[0]}: "
        f"{sample.executed / 1e6:,.1f} M MACs executed, {sample.share:.0%} of all open; {right}</small></h3>"
        f'<div class="four">{figures}</div>'
        f"{route_map(sample_marks(sample.gates, sample.nodes), f'Route of {sample.name}')}</section>"
    )


def _route_legend() -> str:
    line = '<svg viewBox="0 0 34 14"><line class="{}" x1="2" y1="7" x2="32" y2="7"{}/></svg>'
    dot = '<svg viewBox="0 0 34 14">{}</svg>'
    items = [(line.format(kind, ' stroke-width="4"'), kind) for kind in ("up", "keep", "down")]
    items += [
        ('<svg viewBox="0 0 34 14"><path fill="var(--keep)" d="M2 6.6 L32 4 V10 L2 7.4 Z"/></svg>', "width: alpha"),
        (
            dot.format('<circle class="cell" cx="17" cy="7" r="6"/><circle class="fill" cx="17" cy="7" r="6"/>'),
            "cell computed",
        ),
        (dot.format('<circle class="cell" cx="17" cy="7" r="6"/>'), "cell closed"),
        (line.format("passed", ""), "closed cell hands its input on"),
        (line.format("shut", ""), "path closed"),
        (dot.format('<circle class="absent" cx="17" cy="7" r="3"/>'), "absent: nothing reaches it"),
    ]
    return "".join(f"<span>{picture}{escape(text)}</span>" for picture, text in items)


def _probabilities(m: Material) -> str:
    f = m.findings
    return (
        "<h2>How often each path is open</h2>"
        f'<p class="soft">Over {len(f.samples)} validation images: line width and fill are probabilities of being '
        f"open; mean alphas in the tooltips.  Routes, by which paths are open: {escape(in_words(m.routes))}.</p>"
        f"{route_map(probability_marks(f.gates), 'Probability of each path being open')}"
    )


def _own(m: Material) -> Run:
    return Run(m.title, m.config, m.log)


def _curves(m: Material) -> str:
    own = _own(m)

    def series(name: str, key: str, kind: str, dashed: bool = False) -> Series:
        return Series(name, own.points(key), kind, dashed)

    steps = max([float(r["step"]) for r in m.log], default=1.0)
    budget = m.config.get("budget", {})
    costs = [
        series("expected", "expected_share", "two"),
        series("real", "space_share", "one"),
        series("whole", "real_share", "three"),
    ]
    if budget.get("weight"):
        costs.append(Series("target", [(0.0, budget["target"]), (steps, budget["target"])], "mark", dashed=True))
    charts = [
        line_chart("Loss", [series("segmentation", "segmentation", "one"), series("budget", "budget", "two")]),
        line_chart("mIoU", [series("training batches", "miou", "one"), series("validation", "val_miou", "two")], "%"),
        line_chart("Cost, share of all open", costs, "%"),
    ]
    samples = [s for s in m.findings.samples if s.right is not None]
    if samples:
        shown = {picture.sample.index: picture.word for picture in m.pictures}
        marked = {i: shown[sample.index] for i, sample in enumerate(samples) if sample.index in shown}
        points = [(s.share, s.right or 0.0, s.name) for s in samples]
        charts.append(scatter(points, "executed work, share of all open", "Pixels right", marked))
    return (
        "<h2>Training, and work against quality</h2>"
        '<p class="soft">Over training steps, from the run\'s log.  A budget acts from '
        f"{budget.get('start', 0.4):.0%} of training on.  Expected "
        "cost, real cost and target are shares of the space's cost, whole of the whole network's real cost (with stem, "
        "decoder, gates).</p>"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _classes(m: Material) -> str:
    iou = m.evaluation.get("iou") or dict(zip(m.classes, m.findings.iou))
    colours = palette(len(iou))
    rows = []
    for (name, value), (r, g, b) in zip(iou.items(), colours[: len(iou)].tolist()):
        known = isinstance(value, float) and value == value
        width = round(180 * value) if known else 0
        rows.append(
            f'<tr><td><i class="swatch" style="background:rgb({r},{g},{b})"></i>{escape(name)}</td>'
            f"<td>{f'{value:.1%}' if known else 'not seen'}</td>"
            '<td style="text-align:left"><span class="track">'
            f'<i class="bar" style="width:{width}px"></i></span></td></tr>'
        )
    accuracy = m.evaluation.get("pixel_accuracy") or m.findings.pixel_accuracy
    miou = m.evaluation.get("miou") or m.findings.miou
    seen = m.evaluation.get("images", len(m.findings.samples))
    return (
        "<h2>Quality by class</h2>"
        f"<table><tr><th>class</th><th>IoU</th><th></th></tr>{''.join(rows)}"
        f"<tr><td><b>mean</b></td><td><b>{miou:.1%}</b></td><td></td></tr></table>"
        f'<p class="note">Pixel accuracy {accuracy:.1%}; over {seen} validation images, by the evaluation at the end '
        "of training.</p>"
    )


def _footer(m: Material) -> str:
    versions = m.provenance["versions"]
    command = " ".join(m.evaluation.get("command") or [])
    return (
        f"<footer>dynroute {escape(versions['dynroute'])}, torch {escape(versions['torch'])}, Python "
        f"{escape(versions['python'])}; report made on {escape(_machine(m.provenance['machine']))}"
        + (f", commit {escape(str(m.provenance['commit'])[:13])}" if m.provenance.get("commit") else "")
        + f".<br>Seed {escape(str(m.evaluation.get('seed')))}; trained by <code>{escape(command)}</code></footer>"
    )


def _machine(machine: dict[str, Any]) -> str:
    if not machine:
        return "unknown machine"
    gpu = f", {machine['gpu']}" if machine.get("gpu") else ""
    return f"{machine.get('cpu')}, {machine.get('cores')} cores{gpu}"
