"""`dynroute bench --train`: a table of training steps."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from dynroute.cli.common import print_table
from dynroute.cli.target import load_target
from dynroute.measure.train_bench import TrainBench, train_bench

SIZE, BATCH = (256, 256), 2


def run(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Times the steps and prints them. Raises ValueError for what cannot be timed."""
    if args.tune:
        raise ValueError("--train: wanted without --tune")
    if args.model is None:
        raise ValueError("MODEL: wanted what to train (only --tune does without)")
    if device.type != "cpu":
        raise ValueError(f"--train: the fused operators train on the CPU, wanted --device cpu, got {device}")
    target = load_target(args.model, args.small_gate)
    batch = args.batch[0] if len(args.batch) == 1 else BATCH
    result = train_bench(target.net, target.label, batch, args.size or SIZE, args.repeats)
    _print(result)
    return result.to_json()


def _print(result: TrainBench) -> None:
    height, width = result.size
    shape = f"{result.batch}x3x{height}x{width}"
    print(f"{result.model}: a step (forward, loss, backward) on {shape}, {result.threads} threads")
    print(f"median [p10-p90] of {result.repeats} rounds in turns\n")
    peak = result.peak_gflops

    def rate(gflops: float | None) -> str:
        if gflops is None:
            return "-"
        return f"{gflops:.0f}" + (f" ({gflops / peak:.0%})" if peak else "")

    print_table(
        ("step", "ms", "times the first", "kept, MB", "peak, MB", "GFLOP/s (of peak)", "GMACs counted"),
        [
            (
                row.name,
                f"{row.ms.median:.1f} [{row.ms.p10:.1f}-{row.ms.p90:.1f}]",
                f"{row.ratio.median:.2f} [{row.ratio.p10:.2f}-{row.ratio.p90:.2f}]",
                f"{row.saved_bytes / 1e6:.1f}",
                f"{row.peak_bytes / 1e6:.1f}",
                rate(row.gflops),
                f"{row.executed_macs / 1e9:.2f}" if row.executed_macs else "-",
            )
            for row in result.results
        ],
    )
    print("\nkept: by autograd for the backward.  GFLOP/s: of the operations that the plain step needs.")
