"""Times the network with everything open against its routes, in interleaved rounds of one process, beside eager PyTorch
(channels_last).  A run is timed on its own validation images and its own gates; a network with random weights on seeded
random patterns of open nodes.  'realised' is how much of the speed-up that the saved work
promises shows on the clock: (T_open / T_routed) / (work_open / work_routed), with work = executed multiply-accumulates;
none where no work was saved, or no time.

--tune instead measures how the cells of the network are best cut into tiles on this machine, at one image size, and
saves what beats the cost model's plan by more than 3% where every later run finds it: the file that DYNROUTE_TUNING
names, or ~/.cache/dynroute/tuning.json.  Results stay the same bits.  With --backend triton it measures, on a GPU, how
the Triton kernels' work is best cut for the network's shapes, and saves what beats the checked-in cuts by more than 3%
in the file that DYNROUTE_TRITON_TUNING names, or ~/.cache/dynroute/triton_tuning.json.

--train instead times training steps (forward, loss, backward) at one image size: on the fused operators, in plain
PyTorch, and with closed nodes computed or left out; with what autograd keeps and the peak of memory."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from dynroute.cli import bench_train, tune, tune_triton
from dynroute.cli.common import (
    BACKENDS,
    add_device,
    add_storage,
    open_device,
    parse_size,
    positive,
    print_alarms,
    print_table,
)
from dynroute.cli.target import add_target, data_images, load_target
from dynroute.measure.alarms import of_times
from dynroute.measure.bench import IMAGES, SIZE, bench
from dynroute.measure.results import Bench, RouteTimes
from dynroute.measure.verdict import disappoints, pays, sentence

HELP = "time all-open against routed, per batch size"
EXAMPLES = (
    "dynroute bench runs/scenes_quick",
    "dynroute bench runs/scenes_quick --json runs/scenes_quick/bench.json   # the report picks this up",
    "dynroute bench dynamic_raw_l16 --size 512x1024 --batch 1 8 --threads 2",
    "dynroute bench --tune dynamic_raw_l16 --size 512x1024   # once per machine, network and size",
    "dynroute bench --tune --backend triton dynamic_raw_l16 --storage float16   # on a GPU: the kernels' cuts",
    "dynroute bench --train dynamic_raw_l16 --size 256x256 --batch 2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser, optional=True)
    parser.add_argument(
        "--tune",
        action="store_true",
        help=f"measure and save the tiles of the cells for this machine (without a model: of {tune.TUNE_MODEL}); "
        "takes --size, --threads and --repeats; with --backend triton the kernels' cuts, and --storage",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="time training steps instead; takes --size (default 256x256), --batch, --threads and --repeats",
    )
    parser.add_argument(
        "--size",
        type=parse_size,
        metavar="HxW",
        help="image size for random patterns (default 512x1024), or to tune for (default: that of the run's images)",
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: as many as torch takes")
    parser.add_argument(
        "--repeats", type=positive, default=11, metavar="N", help="rounds after the warm-up (default: 11)"
    )
    add_storage(parser)
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="default: auto")
    parser.add_argument("--data", metavar="ROOT", help="time a trained network on this data set ('scenes' also)")
    parser.add_argument("--split", default="val", help="split of --data (default: val)")
    parser.add_argument("--no-eager", action="store_true", help="leave eager PyTorch out")
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.tune and args.backend == "triton":
        return tune_triton.run(args)
    device = open_device(args.device, args.backend)
    before = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        if args.tune:
            if device.type != "cpu":
                raise ValueError(
                    "--tune: the tiles of the CPU engine are tuned, wanted --device cpu or --backend triton"
                )
            return tune.run(args)
        if args.train:
            return bench_train.run(args, device)
        return _time(args, device)
    finally:
        torch.set_num_threads(before)


def _time(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    if args.model is None:
        raise ValueError("MODEL: wanted what to time (only --tune does without)")
    target = load_target(args.model, args.small_gate)
    own = target.trained and (target.run is not None or args.data is not None)
    if own and args.size is not None:
        raise ValueError("--size: a trained network is timed on its images at their own size; leave --size out")
    images = data_images(target, args.data, args.split, max(IMAGES, *args.batch)) if own else None
    result = bench(
        target.net, target.label, images, args.batch, args.repeats, args.backend, args.size or SIZE,
        not args.no_eager, args.storage, device, target.trained,
    )  # fmt: skip
    _print(result)
    alarms = of_times(result.results)
    print_alarms(alarms)
    return {**result.to_json(), "alarms": [alarm.to_json() for alarm in alarms]}


def _print(result: Bench) -> None:
    where = f"{result.threads} threads" if result.device == "cpu" else result.device
    print(f"{result.model}: {result.backend}, {where}")
    height, width = result.results[0].size
    rounds = result.results[0].repeats
    print(f"{height}x{width}, {result.storage}; ms per image, median [p10-p90] of {rounds} rounds\n")

    def cell(row: RouteTimes, name: str) -> str:
        ms = row.ms_per_image.get(name)
        return f"{ms.median:.2f} [{ms.p10:.2f}-{ms.p90:.2f}]" if ms else "-"

    print_table(
        ("batch, routes", "eager", "all open", "routed", "open nodes", "work", "time", "realised"),
        [
            (
                f"{row.batch}, {row.routes}", cell(row, "eager"), cell(row, "all_open"), cell(row, "routed"),
                f"{row.open_nodes:.0%}", f"{1 / row.work_ratio:.0%}", f"{1 / row.time_ratio:.0%}",
                f"{row.realised_share:.2f}" if pays(row) else "-",
            )
            for row in result.results
        ],
    )  # fmt: skip
    print("\nwork, time: of routed, against all open.  All open has its gates given, so it computes none of them.")
    for row in result.results:
        if not pays(row) and not disappoints(row):  # of which an alarm speaks
            print(f"batch {row.batch}, {row.routes}: {sentence(row)}")
