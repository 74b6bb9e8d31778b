"""Trainings beside each other: how the loss went, where it ended, how long it took; a picture and one JSON file.

    python -m benchmarks.training runs/a runs/b [--name camvid] [--out benchmarks/results/train]

Takes the folders of finished runs (`dynroute train ... --run runs/a`), of one configuration that may differ in
operators (`run.ops`), BatchNorm (`train.bn`), seed or threads, and writes OUT/NAME.json and OUT/NAME.png. Runs that
differ in the seed alone have one colour.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.plots import COLOURS
from dynroute.cli.common import one_line, print_table, write_json
from dynroute.report import read_log
from dynroute.train import load_config

LAST = 100  # steps whose mean loss is where a run ended
SMOOTH = 200  # steps that a drawn point is the mean of
MOST_POINTS = 300  # of a curve in the JSON file


def read_run(folder: Path) -> dict[str, Any]:
    """What a run's folder says of it.

    Raises ValueError where a file of a finished run is missing.
    """
    for name in ("config.yaml", "log.jsonl", "eval.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: wanted a finished run's folder, {name} is missing")
    config = load_config(folder / "config.yaml")
    evaluation = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    records = [r for r in read_log(folder / "log.jsonl") if "segmentation" in r]
    steps = np.array([r["step"] for r in records])
    loss = np.array([r["segmentation"] for r in records])
    apart = max(1, len(steps) // MOST_POINTS)
    seconds = float(records[-1]["seconds"])
    # a command without the folders that only this machine has
    places = {config.run.folder: f"runs/{folder.name}", config.data.root: "DATA"}
    return {
        "run": folder.name,
        "ops": config.run.ops,
        "bn": config.train.bn,
        "seed": config.run.seed,
        "threads": evaluation["machine"]["threads"],
        "steps": int(steps[-1]),
        "kind": "measured",
        "loss_at_end": float(loss[steps > steps[-1] - LAST].mean()),
        "miou": evaluation["miou"],
        "images": evaluation["images"],
        "train_seconds": seconds,
        "ms_per_step": 1e3 * seconds / float(steps[-1]),
        "executed_gmacs": {way: records[-1].get(f"executed_gmacs_{way}") for way in ("forward", "backward")},
        "curve": {"step": steps[::apart].tolist(), "loss": loss[::apart].round(4).tolist()},
        "provenance": {
            **{k: evaluation[k] for k in ("versions", "machine", "commit")},
            "command": [_placed(word, places) for word in evaluation["command"]],
        },
    }


def _placed(word: str, places: dict[str | None, str]) -> str:
    """A word, or what is set in `key=value`, as `places` calls it."""
    key, equals, value = word.rpartition("=")
    return f"{key}{equals}{places.get(value, value)}"


def kind_of(run: dict[str, Any]) -> str:
    """Runs of one kind differ in the seed."""
    return f"ops={run['ops']}, bn={run['bn']}"


def rows(runs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table, runs of one kind together."""
    return [
        (
            r["run"], kind_of(r), str(r["seed"]), str(r["threads"]), f"{r['loss_at_end']:.3f}",
            f"{100 * r['miou']:.1f}", f"{r['train_seconds'] / 60:.1f}", f"{r['ms_per_step']:.0f}",
        )
        for r in sorted(runs, key=lambda r: (kind_of(r), r["seed"]))
    ]  # fmt: skip


def draw(runs: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Losses over steps; runs of one kind in one colour."""
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    colours = dict(zip(dict.fromkeys(map(kind_of, runs)), COLOURS))
    named = set()
    for run in runs:
        kind, steps = kind_of(run), np.array(run["curve"]["step"])
        apart = steps[1] - steps[0] if len(steps) > 1 else 1
        width = min(len(steps), max(1, round(SMOOTH / apart)))
        smooth = np.convolve(run["curve"]["loss"], np.ones(width) / width, "valid")
        taken = np.mean([r["ms_per_step"] for r in runs if kind_of(r) == kind])
        label = None if kind in named else f"{kind} ({taken:.0f} ms a step)"
        axes.plot(steps[width - 1 :], smooth, color=colours[kind], linewidth=1.2, alpha=0.85, label=label)
        named.add(kind)
    axes.set(
        xlabel="step", ylabel=f"segmentation loss (measured; mean over {SMOOTH} steps)", title=title, ylim=(0, None)
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished training run")
    parser.add_argument("--name", default="training", help="of the files and the picture (default: training)")
    parser.add_argument("--note", default="", help="what else ran beside them, and the like")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train"), metavar="FOLDER")
    args = parser.parse_args()
    try:
        runs = [read_run(folder) for folder in args.runs]
    except ValueError as error:
        parser.error(one_line(error))
    columns = ("run", "trained with", "seed", "threads", f"loss, last {LAST}", "mIoU, %", "minutes", "ms/step")
    print_table(columns, rows(runs))
    args.out.mkdir(parents=True, exist_ok=True)
    config = load_config(args.runs[0] / "config.yaml").to_dict()
    del config["run"]["folder"], config["data"]["root"]  # this machine's
    write_json(args.out / f"{args.name}.json", {"note": args.note, "config": config, "runs": runs})
    draw(runs, args.name, args.out / f"{args.name}.png")
    print(f"\nwritten: {args.out / args.name}.json, .png")


if __name__ == "__main__":
    main()
