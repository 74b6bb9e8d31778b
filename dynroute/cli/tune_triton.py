"""`dynroute bench --tune --backend triton`: cuts of the Triton kernels measured on a GPU, the faster ones saved."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from tqdm import tqdm

from dynroute.cli.common import open_device, print_table
from dynroute.cli.target import load_target
from dynroute.cli.tune import TUNE_MODEL, tune_images
from dynroute.measure.bench import SEED
from dynroute.measure.triton_tuning import TunedCall, calls, tune, why_not
from dynroute.ops.triton import configs
from dynroute.ops.triton.cuts import NAMES, Cut, dtype_name, read_cuts, save_cuts


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures cuts, saves what is better than the checked-in ones, and puts it in force."""
    path = configs.tuning_file()
    if path is None:
        raise ValueError(
            "--tune: DYNROUTE_TRITON_TUNING or DYNROUTE_TUNING is off; wanted the name of a file in the former, or "
            "neither off"
        )
    read_cuts(path)  # what is not a file of cuts is found out before the work, and never written over
    if (reason := why_not()) is not None:
        raise ValueError(f"--tune: {reason}")
    device = open_device(args.device or "cuda", args.backend)
    if device.type != "cuda":
        raise ValueError(f"--device {device}: wanted a GPU, as --backend triton is tuned there")
    target = load_target(args.model or TUNE_MODEL, args.small_gate)
    if (reason := why_not(target.net.config)) is not None:
        raise ValueError(f"--tune: {target.label}: {reason}")
    height, width = tune_images(target, args).shape[-2:]
    with torch.cuda.device(device), torch.inference_mode():
        of = calls(target.net.config, height, width, NAMES[args.storage], device, SEED)
        with tqdm(desc="tune", unit="cut", delay=2, leave=False, dynamic_ncols=True) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = tune(of, args.repeats, progress=advance)
        name, arch = torch.cuda.get_device_name(), configs.architecture()
    entries = [entry for row in found if (entry := row.entry(args.repeats, SEED, name)) is not None]
    save_cuts(path, entries, [row.key for row in found])
    configs.load_tuning(again=True)
    print(f"{target.label} at {height}x{width}, {args.storage}: {name} (sm_{arch}), batch 1, the sample open")
    print_found(found, args.repeats)
    print(f"saved in {path}" if entries else f"nothing to save in {path}, the checked-in cuts are in force")
    return {
        "model": target.label,
        "size": [height, width],
        "storage": args.storage,
        "device": name,
        "arch": arch,
        "repeats": args.repeats,
        "seed": SEED,
        "file": str(path),
        "results": [as_json(row) for row in found],
    }


def as_json(row: TunedCall) -> dict[str, Any]:
    """What was measured for one operator and scale."""
    return {
        **row.key._asdict(), "dtype": dtype_name(row.key.dtype), "height": row.height, "width": row.width,
        "tried": row.tried, "skipped": row.skipped, "before": row.before._asdict(), "chosen": row.chosen._asdict(),
        "before_ms": row.before_ms, "chosen_ms": row.chosen_ms, "gain": row.gain, "best": row.best,
    }  # fmt: skip


def print_found(found: list[TunedCall], rounds: int) -> None:
    """The table of what was measured, and what its columns are."""
    print(f"ms of one call, medians of {rounds} rounds\n")
    print_table(
        ("operator, channels, map", "tried", "skipped", "checked-in cut", "ms", "chosen cut", "ms", "gain"),
        [
            (
                f"{row.key.op} {row.key.channels} {row.height}x{row.width}", row.tried, len(row.skipped),
                _cut(row.before), f"{row.before_ms:.4f}",
                _cut(row.chosen) if row.chosen != row.before else "the same", f"{row.chosen_ms:.4f}",
                f"{row.gain:.1%}" if row.chosen != row.before else f"- (best {row.best:.1%})",
            )
            for row in found
        ],
    )  # fmt: skip
    print("\ncut: pixels x channels, step, warps, loads on their way.  skipped: did not compile, or wants more shared")
    print("memory or registers than there are.  gain: by medians or by the fastest rounds, whichever is less; the")
    print("checked-in cut stays where nothing beats it by more than 3%.")
    for reason in sorted({reason for row in found for reason in row.skipped}):
        print(f"skipped {reason}")


def _cut(cut: Cut) -> str:
    return f"{cut.block_m}x{cut.block_n}, {cut.block_k}, {cut.num_warps}, {cut.num_stages}"
