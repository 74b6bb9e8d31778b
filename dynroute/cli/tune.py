"""`dynroute bench --tune`: tilings measured on this machine, and those that are faster saved."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dynroute.cli.common import print_table
from dynroute.cli.target import Target, data_images, load_target
from dynroute.measure.bench import SEED, SIZE
from dynroute.measure.tuning import TunedNetwork, tune_network
from dynroute.native import planner
from dynroute.ops.backends import NETWORK, why_not
from dynroute.runtime.cpu.tuning_file import load_tuning, read_tuning, save_tuning, tuning_file

TUNE_MODEL = "dynamic_raw_l16"


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures tiles, saves what is better than the model's, and puts it in force."""
    path = tuning_file()
    if path is None:
        raise ValueError("--tune: DYNROUTE_TUNING=off; wanted the name of a file there, or the variable unset")
    reason = planner.why_not()
    if reason is not None:
        raise ValueError(f"--tune: the planner is not there: {reason}")
    if args.backend == "reference":
        raise ValueError("--tune: the cpu backend has plans and triton has cuts, reference has neither")
    read_tuning(path)  # what is not a tuning file is found out before the work, and never written over
    target = load_target(args.model or TUNE_MODEL, args.small_gate)
    reason = why_not(NETWORK, "cpu", target.net)
    if reason is not None:
        raise ValueError(f"--tune: {target.label}: {reason}")
    images = tune_images(target, args)
    try:
        with tqdm(desc="tune", unit="run", delay=2, leave=False, dynamic_ncols=True) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = tune_network(target.net, images, args.repeats, advance)
        if found.kept:
            save_tuning(path, found.entries(), [of_scale.shape for of_scale in found.shapes])
    finally:
        load_tuning(again=True)
    _print(target.label, images, args.repeats, found, str(path))
    return {
        "model": target.label,
        "size": list(images.shape[-2:]),
        "threads": found.threads,
        "repeats": args.repeats,
        "seed": SEED,
        "planner": planner.machine(),
        "file": str(path),
        "kept": found.kept,
        "network_ms": {"model": found.model_ms, "chosen": found.chosen_ms},
        "results": [asdict(of_scale) for of_scale in found.shapes],
    }


def tune_images(target: Target, args: argparse.Namespace) -> Tensor:
    """One image [1,I,H,W] of the size to tune for: --size, else that of the run's or --data's images."""
    if args.size is None and target.trained and (target.run is not None or args.data is not None):
        return data_images(target, args.data, args.split, 1)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(1, target.net.config.in_channels, *(args.size or SIZE), generator=generator)


def _plan(plan: planner.Plan) -> str:
    tiles = f"{plan.band_rows}/{plan.step_rows} rows, {plan.strip} wide, {plan.tile_pixels} px"
    return f"{'fused' if plan.fused else 'staged'} {tiles}"


def _print(label: str, images: Tensor, rounds: int, found: TunedNetwork, file: str) -> None:
    height, width = images.shape[-2:]
    isa = planner.machine()["isa"]
    print(f"{label} at {height}x{width}: {isa}, {found.threads} threads, batch 1, all open")
    print(f"ms of a scale's cells in one pass, added up over threads, medians of {rounds} rounds\n")
    print_table(
        ("cells", "tried", "model's plan", "ms", "chosen plan", "ms", "gain"),
        [
            (
                str(row.shape), row.candidates, _plan(row.model), f"{row.model_ms:.2f}",
                _plan(row.chosen) if row.choice else "the model's", f"{row.chosen_ms:.2f}",
                f"{row.gain:.1%}" if row.choice else f"- (best {row.best:.1%})",
            )
            for row in found.shapes
        ],
    )  # fmt: skip
    print(
        "\nrows: of a task / made at a time.  gain: by medians or by the fastest rounds, whichever is less; the model's"
    )
    print("plan stays where nothing beats it by more than 3%.")
    if not any(row.choice for row in found.shapes):
        print(f"whole network: {found.model_ms:.2f} ms; nothing to save, the model's plans are in force")
        return
    print(
        f"whole network: {found.model_ms:.2f} ms with the model's plans, {found.chosen_ms:.2f} ms with the chosen ones"
    )
    if found.kept:
        print(f"saved in {file}")
    else:
        print("not saved: together they make the network slower, or the machine is too busy to tell")
