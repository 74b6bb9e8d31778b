"""CONFIG is a YAML file or the name of a shipped configuration.  The run's folder gets config.yaml, log.jsonl, tb/
(TensorBoard), checkpoints/, and at the end model/ and eval.json.

A run that was stopped or killed goes on by --resume, with the same losses, bit for bit, as without the interruption;
with a larger schedule.steps it becomes longer, and it may move to another device or number of processes.  Ctrl-C or
SIGTERM ends after the step at hand, with a checkpoint.  --set run.resume=auto begins a run, or goes on where there is
one: for a scheduler that starts the same command again.

Under torchrun several processes train one network, each on its share of a batch.  With --max-restarts a process that
dies is started again with the others, and the run goes on from its newest checkpoint by itself.

--set train.ema=0.999 evaluates and saves a moving average of the weights.  --set run.amp=bfloat16, or float16 on a GPU,
trains in 16 bits; --set run.deterministic=true gives the same bits in every run.  See docs/guide/training.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = "train a network as a configuration says"
EXAMPLES = (
    "dynroute train scenes_quick                                    # minutes on a CPU, nothing to download",
    "dynroute train scenes_quick --set budget.weight=0 --run runs/no_budget",
    "dynroute train camvid_budget --set data.root=/data/camvid --set optimiser.batch=4",
    "dynroute train runs/camvid/config.yaml --resume                # go on after an interruption",
    "dynroute train runs/camvid/config.yaml --resume --set schedule.steps=40000    # longer, also a finished one",
    "dynroute train camvid --set data.root=/data/camvid train.ema=0.999 run.amp=bfloat16",
    'dynroute train camvid --set data.root=/data/camvid model.init=runs/cityscapes "train.freeze=[stem, init]"',
    "torchrun --standalone --max-restarts=3 --nproc-per-node=4 -m dynroute train camvid --set data.root=/data/camvid",
    "torchrun --nnodes=2 --nproc-per-node=4 --max-restarts=3 --rdzv-backend=c10d --rdzv-endpoint=HOST1:29500 \\\n"
    "      -m dynroute train cityscapes_raw_l16 --set data.root=/data/cityscapes     # the same on both machines",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from dynroute.models.fused import CHOICES
    from dynroute.train.config import list_configs

    parser.add_argument("config", metavar="CONFIG", help=f"a YAML file, or one of: {', '.join(list_configs())}")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", nargs="+",
        help="change a value of the configuration, such as optimiser.lr=0.02",
    )  # fmt: skip
    parser.add_argument("--run", type=Path, metavar="FOLDER", dest="run_folder", help="the run's folder (run.folder)")
    parser.add_argument("--ops", choices=CHOICES, help="the operators that train (run.ops)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint of the folder")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    from dynroute.train.config import load_config
    from dynroute.train.loop import train
    from dynroute.train.processes import is_first

    overrides = [item for group in args.overrides for item in group]
    if args.run_folder is not None:
        overrides.append(f"run.folder={json.dumps(str(args.run_folder))}")
    if args.ops is not None:
        overrides.append(f"run.ops={args.ops}")
    folder = train(load_config(args.config, overrides), resume=args.resume)
    if not is_first():
        return None
    result = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    print(f"run: {folder}")
    print(f"mIoU {result['miou'] or 0:.4f} on {result['images']} images")
    for key, word in (("expected_mflops", "expected"), ("real_mflops", "real")):
        if result[key] is None:  # not finite
            continue
        share = result[key] / result[f"all_open_{key}"] if result.get(f"all_open_{key}") else None
        print(f"{word} cost {result[key]:.1f} MFLOPs" + (f", {share:.1%} of all open" if share is not None else ""))
    print(f"next: dynroute report {folder}")
    return {"run": str(folder), **result}
