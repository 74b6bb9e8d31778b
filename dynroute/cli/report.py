"""Writes one HTML file that needs nothing else: the run's facts, what routing saved (expected, executed, on the clock),
images with their errors and route maps, path probabilities, training curves, IoU by class.  Timings come from
RUN/bench.json where `dynroute bench RUN --json RUN/bench.json` made one; otherwise they are measured briefly."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynroute.cli.common import BACKENDS, positive
from dynroute.cli.target import data_images, load_target, open_data, run_config
from dynroute.data.channels import visible
from dynroute.measure import Bench, Findings, observe, open_model
from dynroute.measure.alarms import of_routing, of_times, ordered
from dynroute.measure.bench import IMAGES, bench
from dynroute.measure.observe import predict
from dynroute.measure.taken import RoutesTaken
from dynroute.provenance import provenance
from dynroute.report import Material, Picture, choose, read_log, write_report
from dynroute.report.beside import MOST, Run
from dynroute.train import load_config

HELP = "write an HTML report of a training run"
EXAMPLES = (
    "dynroute report runs/scenes_quick",
    "dynroute report runs/camvid --images 5 --out camvid.html",
    "dynroute report runs/fused --beside runs/reference",
)
# Enough for a stable table; a big validation set need not be gone through again.
OBSERVED = 128
BRIEF_REPEATS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="RUN", help="folder of a finished training run")
    parser.add_argument("--images", type=positive, default=3, metavar="N", help="images shown (default: 3)")
    parser.add_argument(
        "--observe", type=positive, default=OBSERVED, metavar="N",
        help=f"validation images to run and count (default: {OBSERVED})",
    )  # fmt: skip
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], metavar="RUN",
        help=f"up to {MOST} other runs, whose curves are drawn on this one's",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="default: auto")


def run(args: argparse.Namespace) -> dict[str, Any]:
    out, findings = make_report(Path(args.folder), args.images, args.out, args.observe, args.backend, args.beside)
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)")
    names = ("expected", "full_expected", "real", "full_real", "space", "full_space", "executed", "full_executed")
    return {
        "run": args.folder,
        "report": str(out),
        "observed": len(findings.samples),
        "miou": findings.miou,
        **{name: findings.mean(name) for name in names},
    }


def make_report(
    folder: Path,
    images: int = 3,
    out: Path | None = None,
    observed: int = OBSERVED,
    backend: str = "auto",
    beside: Sequence[Path] = (),
) -> tuple[Path, Findings]:
    """Gathers what the run left behind, measures what is missing, writes the report: its path, and what it found."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: wanted a training run's folder (config.yaml, model/, eval.json, log.jsonl)")
    target = load_target(str(folder))
    others = [_read_run(other) for other in beside]
    if len(others) > MOST:
        raise ValueError(f"--beside: wanted at most {MOST} runs, got {len(others)}")
    out = out or folder / "report.html"
    if not out.resolve().parent.is_dir():
        raise ValueError(f"--out {out}: wanted a file in a folder that exists")
    evaluation = _read_json(folder / "eval.json", "miou")
    timed = _read_bench(folder / "bench.json") if (folder / "bench.json").is_file() else None
    source = open_data(target, None, "val")
    model = open_model(target.net, backend)
    count = min(observed, len(source))
    with tqdm(total=count, desc="observe", unit="image", delay=2, leave=False, dynamic_ncols=True) as bar:
        findings = observe(model, source, target.normalise, count, lambda: bar.update())
    if timed is None:
        timed = bench(
            target.net, target.label, data_images(target, None, "val", IMAGES), [1, 8], BRIEF_REPEATS, backend
        )
    pictures = []
    for place, word in choose(findings.samples, images):
        sample = findings.samples[place]
        image, truth = source.read(sample.index)
        labels, _ = predict(model, source, target.normalise, sample.index)
        pictures.append(Picture(sample, word, visible(image), truth, labels.numpy()))
    trained_as = load_config(folder / "config.yaml")
    taken = RoutesTaken()
    taken.add(findings.gates)
    routes = taken.statistics()
    assert routes is not None  # `observe` has refused an empty data set
    wrong = of_routing(routes, findings.shares, target.net.config, trained_as.budget, trained_as.data.crop)
    alarms = ordered([*wrong, *of_times(timed.results)])
    material = Material(
        title=folder.resolve().name,
        network=target.net.config,
        classes=source.class_names,
        images=len(source),
        findings=findings,
        routes=routes,
        alarms=alarms,
        pictures=pictures,
        config=run_config(target),
        evaluation=evaluation,
        log=read_log(folder / "log.jsonl"),
        bench=timed,
        provenance=provenance(),
        others=others,
    )
    return write_report(material, out), findings


def _read_run(folder: Path) -> Run:
    if not (folder / "config.yaml").is_file() or not (folder / "log.jsonl").is_file():
        raise ValueError(f"--beside {folder}: wanted a training run's folder (config.yaml, log.jsonl)")
    config = load_config(folder / "config.yaml").to_dict()
    return Run(folder.resolve().name, config, read_log(folder / "log.jsonl"))


def _read_json(path: Path, key: str) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; wanted a run whose training has finished") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(record, dict) or key not in record:
        raise ValueError(f"{path}: wanted a JSON object with {key!r}")
    return record


def _read_bench(path: Path) -> Bench:
    record = _read_json(path, "results")
    try:
        return Bench.from_json(record)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a result of `dynroute bench --json` ({error!r})") from None
