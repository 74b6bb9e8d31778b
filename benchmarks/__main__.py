"""Runs the benchmarks, prints Markdown tables, writes cpu.json and the plots.

python -m benchmarks                          everything: some 20 minutes on two cores
python -m benchmarks --quick                  a look at each of them, under two minutes
python -m benchmarks --only check             no operator slower than eager PyTorch? status 1 if one is
python -m benchmarks --only all_open --skip torch_compile
python -m benchmarks --only own_gates --run runs/camvid
python -m benchmarks --only train train_ops

The exit status is 1 if an operator is slower than eager PyTorch or a benchmark did not run. A missed bar is not an
error: the table of bars says it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import memory, network, ops, peers, plots, train, train_ops  # noqa: F401  (importing registers the benchmarks)
from benchmarks.harness import REGISTRY, SEED, Benchmark, Settings, plan, run_case
from benchmarks.machine import probe
from benchmarks.tables import PEERS, rates, report, shape_text
from dynroute.cli.common import positive
from dynroute.cli.target import load_target
from dynroute.native import library
from dynroute.provenance import provenance

RESULTS = Path(__file__).parent / "results"
ROUNDS, QUICK_ROUNDS = 15, 5
SECONDS, QUICK_SECONDS = 30.0, 3.0


def run(settings: Settings, cases: list[tuple[Benchmark, dict[str, Any]]], probe_rounds: int = 9) -> dict[str, Any]:
    """The results document of some benchmarks: provenance, machine, results. JSON-able."""
    shown = sys.stderr.isatty()
    weights = [benchmark.guess(shape) for benchmark, shape in cases]
    results = []
    # into a file: a line now and then, not one per round
    with tqdm(
        total=sum(weights) + 1, delay=2, leave=False, bar_format=BAR, mininterval=0.1 if shown else 20, miniters=0
    ) as progress:
        progress.set_description("machine", refresh=shown)
        machine = probe(probe_rounds)
        progress.update()
        for i, (benchmark, shape) in enumerate(cases):
            label = f"{benchmark.name} {shape_text(shape)}"

            def say(text: str, label: str = label) -> None:
                progress.set_description(f"{label} [{text}]", refresh=shown)

            def advance(part: float, weight: float = weights[i]) -> None:
                progress.update(part * weight)

            progress.set_description(label, refresh=shown)
            settings.say = say
            try:
                result = run_case(benchmark, shape, settings, advance)
            except Exception as error:  # the other cases still say something; the exit status tells
                result = without_times(benchmark, shape, f"{type(error).__name__}: {error}")
            except KeyboardInterrupt:
                results += [without_times(b, s, "interrupted") for b, s in cases[i:]]
                break
            result["rates"] = rates(result, machine) if "ms" in result else {}
            results.append(result)
            progress.update(1 + sum(weights[: i + 1]) - progress.n)
    return {"provenance": provenance(SEED), "build": library.build_info(), "versions": peer_versions(),
            "rounds": settings.rounds, "scale": settings.scale, "machine": machine, "results": results}  # fmt: skip


def without_times(benchmark: Benchmark, shape: dict[str, Any], error: str) -> dict[str, Any]:
    """The result of a case that did not come to its end."""
    return {"benchmark": benchmark.name, "group": benchmark.group, "shape": shape, "macs": None, "bytes": None,
            "absent": {}, "errors": {}, "facts": {}, "bars": [], "rates": {}, "error": error}  # fmt: skip


BAR = "{desc}{percentage:3.0f}%|{bar:20}| {elapsed} < {remaining}"


def peer_versions() -> dict[str, str | None]:
    """Installed versions of what is compared with; None: not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for package in ("torch", "onnxruntime", "openvino", "onnx", "onnxscript"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few shapes and rounds; numbers are rough")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="benchmarks with one of these in the name"
    )
    parser.add_argument("--skip", nargs="+", default=[], choices=list(PEERS), metavar="PEER",
                        help=f"leave out peers: {', '.join(PEERS)}")  # fmt: skip
    parser.add_argument("--rounds", type=positive, help=f"per case (default: {ROUNDS}; --quick: {QUICK_ROUNDS})")
    parser.add_argument("--seconds", type=float, metavar="S",
                        help="a case whose rounds would take longer gets fewer, but 5 "
                        f"(default: {SECONDS:g}; --quick: {QUICK_SECONDS:g})")  # fmt: skip
    parser.add_argument("--threads", type=positive, help="of torch, and of every peer (default: torch's own choice)")
    parser.add_argument("--run", metavar="FOLDER", help="a training run: times its own gates on its validation images")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR",
                        help="where cpu.json and the plots go (default: benchmarks/results)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    if args.list:
        print("\n".join(REGISTRY))
        return 0
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    skip = set(args.skip) | ({peers.COMPILED} if args.quick else set())
    settings = Settings(
        rounds=args.rounds or (QUICK_ROUNDS if args.quick else ROUNDS),
        seconds=args.seconds or (QUICK_SECONDS if args.quick else SECONDS),
        scale="quick" if args.quick else "full",
        peers=tuple(peer for peer in PEERS if peer not in skip),
        run=args.run,
    )
    try:
        cases = plan(settings, args.only)
        if args.run is not None:
            load_target(args.run)  # a wrong path is better said now than in the middle
    except ValueError as error:
        parser.error(str(error))
    document = run(settings, cases, 3 if args.quick else 9)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "cpu.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(report(document))
    for written in (path, *plots.draw(document, args.out)):
        print(f"\nwrote {written}", end="", file=sys.stderr)
    print(file=sys.stderr)
    slower = [r for r in document["results"] if r["group"] == "check" and not all(b["hit"] for b in r["bars"])]
    for r in slower:
        ratio = f"{r['bars'][0]['got']:.2f}"
        print(f"slower than eager: {r['benchmark']} {shape_text(r['shape'])}: {ratio}", file=sys.stderr)
    broken = [r for r in document["results"] if "error" in r]
    for r in broken:
        print(f"did not run: {r['benchmark']} {shape_text(r['shape'])}: {r['error']}", file=sys.stderr)
    return 1 if slower or broken else 0


if __name__ == "__main__":
    sys.exit(main())
