"""`python -m dynroute.quickstart`: a small routed network without and with a budget, timed, and a report of each.

Procedural scenes, nothing to download; some four minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dynroute.cli.common import one_line, print_table, write_json
from dynroute.cli.report import make_report
from dynroute.cli.target import data_images, load_target
from dynroute.measure.bench import IMAGES, bench
from dynroute.measure.results import RouteTimes
from dynroute.measure.verdict import pays, sentence
from dynroute.train import load_config, train
from dynroute.train.checkpoint import Checkpoints

STEPS = 1800
# What docs/guide/budget.md argues for: the real cost presses until paths are closed, the bridge lets whole cells close.
BUDGET = ("budget.measure=real", "budget.weight=3", "budget.target=0.35", "budget.ramp=0.1", "budget.bridge=2.0")
RUNS = {"without": ("budget.weight=0",), "with": BUDGET}
REPEATS = 11


def main(argv: list[str] | None = None) -> int:
    """Trains, times and reports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dynroute.quickstart", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps of each run (default: {STEPS})")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"rounds of timing (default: {REPEATS})")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        results = {
            name: one_run(args.out / name, args.steps, args.repeats, [*extra, *args.overrides])
            for name, extra in RUNS.items()
        }
    except (ValueError, OSError) as error:
        print(f"quickstart: error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("quickstart: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    print_summary(results)
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{minutes:.1f} minutes.  Reports, to open in a browser:")
    for result in results.values():
        print(f"  {result.report}")
    return 0


@dataclass(frozen=True)
class Result:
    """A run: quality; costs as shares of the same network with everything open; times; its report."""

    miou: float
    expected: float
    real: float
    space: float
    executed: float
    times: list[RouteTimes]
    backend: str
    report: Path


def one_run(folder: Path, steps: int, repeats: int, overrides: list[str]) -> Result:
    """Trains into `folder` (goes on, or leaves it, if it is already there), times it, writes its report."""
    settings = [
        f"schedule.steps={steps}", f"schedule.warmup_steps={min(steps, 100)}",
        f"run.folder={json.dumps(str(folder))}", "run.checkpoint_every=100",
        "evaluation.precise_bn_batches=20", "data.scenes_val=64", *overrides,
    ]  # fmt: skip
    config = load_config("scenes_quick", settings)
    if not (folder / "eval.json").is_file():
        train(config, resume=bool(Checkpoints(folder)))
    target = load_target(str(folder))
    timed = bench(target.net, target.label, data_images(target, None, "val", IMAGES), [1, 8], repeats)
    write_json(folder / "bench.json", timed.to_json())
    report, findings = make_report(folder)
    evaluation = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    return Result(
        miou=evaluation["miou"] or 0.0,
        expected=findings.mean("expected") / findings.mean("full_expected"),
        real=findings.mean("real") / findings.mean("full_real"),
        space=findings.mean("space") / findings.mean("full_space"),
        executed=findings.mean("executed") / findings.mean("full_executed"),
        times=timed.results,
        backend=timed.backend,
        report=report,
    )


def print_summary(results: dict[str, Result]) -> None:
    """Both runs side by side: shares of the same network with everything open."""
    runs = list(results.values())

    def line(label: str, key: str, form: str = ".0%") -> tuple[str, ...]:
        return (label, *[f"{getattr(run, key):{form}}" for run in runs])

    rows = [
        line("mIoU", "miou", ".3f"),
        line("expected cost of the space (computed)", "expected"),
        line("real cost as the paper counts (computed)", "real"),
        line("executed in the space (counted)", "space"),
        line("executed in all (counted)", "executed"),
    ]
    for pairs in zip(*(run.times for run in runs)):
        batch = pairs[0].batch
        rows.append((f"time at batch {batch} (measured)", *[f"{1 / pair.time_ratio:.0%}" for pair in pairs]))
        ms = [(pair.ms_per_image["all_open"].median, pair.ms_per_image["routed"].median) for pair in pairs]
        rows.append(("  ms per image, all open -> routed", *[f"{a:.2f} -> {b:.2f}" for a, b in ms]))
        shares = [f"{pair.realised_share:.2f}" if pays(pair) else "-" for pair in pairs]
        rows.append(("  realised share", *shares))
    print(f"\nShares of the same network with everything open; {runs[0].backend}.\n")
    print_table(("", *[f"{name} budget" for name in results]), rows)
    print()
    for name, run in results.items():
        for row in run.times:
            print(f"{name} budget, batch {row.batch}: {sentence(row)}")


if __name__ == "__main__":
    sys.exit(main())
