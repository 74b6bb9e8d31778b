"""Times the network with everything open against its routes, in interleaved rounds of one process, beside eager PyTorch
(channels_last).  A run is timed on its own validation images and its own gates; a network with random weights on seeded
random patterns of open nodes.  'realised' is the share of the saving that the clock shows:
(T_open / T_routed) / (work_open / work_routed), with work = executed multiply-accumulates.

--tune instead measures how the cells of the network are best cut into tiles on this machine, at one image size, and
saves what beats the cost model's plan by more than 3% where every later run finds it: the file that DYNROUTE_TUNING
names, or ~/.cache/dynroute/tuning.json.  Results stay the same bits."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from dynroute.cli.common import (
    BACKENDS,
    Target,
    add_device,
    add_storage,
    add_target,
    input_tensor,
    load_target,
    open_data,
    open_device,
    parse_size,
    positive,
    print_table,
)
from dynroute.native import planner
from dynroute.runtime.cpu import tuning_file

HELP = "time all-open against routed, per batch size"
EXAMPLES = (
    "dynroute bench runs/scenes_quick",
    "dynroute bench runs/scenes_quick --json runs/scenes_quick/bench.json   # the report picks this up",
    "dynroute bench dynamic_raw_l16 --size 512x1024 --batch 1 8 --threads 2",
    "dynroute bench --tune dynamic_raw_l16 --size 512x1024   # once per machine, network and size",
)
TUNE_MODEL = "dynamic_raw_l16"
SIZE = (512, 1024)
PATTERNS = (0.3, 0.5, 0.7, 1.0)
PATTERN_SEED = 0
# Different routes cost differently: at batch 1 a round goes over this many images (or patterns).
IMAGES = 8
PATTERNS_EACH = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser, optional=True)
    parser.add_argument(
        "--tune",
        action="store_true",
        help=f"measure and save the tiles of the cells for this machine (without a model: of {TUNE_MODEL}); "
        "takes --size, --threads and --repeats",
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
    device = open_device(args.device, args.backend)
    if args.tune:
        if device.type != "cpu":
            raise ValueError("--tune: the tiles of the CPU engine are tuned, wanted --device cpu")
        return run_tune(args)
    if args.model is None:
        raise ValueError("MODEL: wanted what to time (only --tune does without)")
    target = load_target(args.model, args.small_gate)
    own = target.trained and (target.run is not None or args.data is not None)
    if own and args.size is not None:
        raise ValueError("--size: a trained network is timed on its images at their own size; leave --size out")
    images = data_images(target, args.data, args.split, max(IMAGES, *args.batch)) if own else None
    before = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        result = measure(
            target, images, args.batch, args.repeats, args.backend, args.size or SIZE, not args.no_eager, args.storage,
            device,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    print_result(result)
    return result


def run_tune(args: argparse.Namespace) -> dict[str, Any]:
    """Measures tiles, saves what is better than the model's, and puts it in force."""
    from dynroute.runtime.executor import why_not

    path = tuning_file.tuning_file()
    if path is None:
        raise ValueError("--tune: DYNROUTE_TUNING=off; wanted the name of a file there, or the variable unset")
    reason = planner.why_not()
    if reason is not None:
        raise ValueError(f"--tune: the planner is not there: {reason}")
    if args.backend == "reference":
        raise ValueError("--tune: only the cpu backend has plans, not reference")
    tuning_file.read_tuning(path)  # what is not a tuning file is found out before the work, and never written over
    target = load_target(args.model or TUNE_MODEL, args.small_gate)
    reason = why_not("cpu", target.net)
    if reason is not None:
        raise ValueError(f"--tune: {target.label}: {reason}")
    before = torch.get_num_threads()
    try:
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        result = tune(target, tune_images(target, args), args.repeats)
    finally:
        torch.set_num_threads(before)
    print_tuned(result)
    return result


def tune_images(target: Target, args: argparse.Namespace) -> Tensor:
    """One image [1,3,H,W] of the size to tune for: --size, else that of the run's or --data's images."""
    if args.size is None and target.trained and (target.run is not None or args.data is not None):
        return data_images(target, args.data, args.split, 1)
    generator = torch.Generator().manual_seed(PATTERN_SEED)
    return torch.randn(1, 3, *(args.size or SIZE), generator=generator)


def tune(target: Target, images: Tensor, rounds: int) -> dict[str, Any]:
    """Tunes for one image [1,3,H,W] of `target` and saves the entries, unless they make the network slower.

    Raises:
        RuntimeError: the planner is not there.
        ValueError, OSError: the tuning file cannot be read or written.
    """
    from tqdm import tqdm

    from dynroute.measure.tuning import tune_network

    path = tuning_file.tuning_file()
    if path is None:
        raise ValueError("DYNROUTE_TUNING=off names no file")
    try:
        with tqdm(desc="tune", unit="run", delay=2, leave=False, dynamic_ncols=True) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = tune_network(target.net, images, rounds, advance)
        if found.kept:
            tuning_file.save_tuning(path, found.entries(), [of_scale.shape for of_scale in found.shapes])
    finally:
        tuning_file.load_tuning(again=True)
    return {
        "model": target.label,
        "size": list(images.shape[-2:]),
        "threads": found.threads,
        "repeats": rounds,
        "seed": PATTERN_SEED,
        "planner": planner.machine(),
        "file": str(path),
        "kept": found.kept,
        "network_ms": {"model": found.model_ms, "chosen": found.chosen_ms},
        "results": [asdict(of_scale) for of_scale in found.shapes],
    }


def print_tuned(result: dict[str, Any]) -> None:
    """The table on stdout."""
    height, width = result["size"]
    machine = result["planner"]
    print(f"{result['model']} at {height}x{width}: {machine['isa']}, {result['threads']} threads, batch 1, all open")
    print(f"ms of a scale's cells in one pass, added up over threads, medians of {result['repeats']} rounds\n")

    def plan(found: dict[str, Any]) -> str:
        tiles = f"{found['band_rows']}/{found['step_rows']} rows, {found['strip']} wide, {found['tile_pixels']} px"
        return f"{'fused' if found['fused'] else 'staged'} {tiles}"

    print_table(
        ("cells", "tried", "model's plan", "ms", "chosen plan", "ms", "gain"),
        [
            (
                str(planner.Shape(**row["shape"])), row["candidates"], plan(row["model"]), f"{row['model_ms']:.2f}",
                plan(row["chosen"]) if row["choice"] else "the model's", f"{row['chosen_ms']:.2f}",
                f"{row['gain']:.1%}" if row["choice"] else f"- (best {row['best']:.1%})",
            )
            for row in result["results"]
        ],
    )  # fmt: skip
    print(
        "\nrows: of a task / made at a time.  gain: by medians or by the fastest rounds, whichever is less; the model's"
    )
    print("plan stays where nothing beats it by more than 3%.")
    before, after = result["network_ms"]["model"], result["network_ms"]["chosen"]
    if not any(row["choice"] for row in result["results"]):
        print(f"whole network: {before:.2f} ms; nothing to save, the model's plans are in force")
        return
    print(f"whole network: {before:.2f} ms with the model's plans, {after:.2f} ms with the chosen ones")
    if result["kept"]:
        print(f"saved in {result['file']}")
    else:
        print("not saved: together they make the network slower, or the machine is too busy to tell")


def measure(
    target: Target,
    images: Tensor | None,
    batches: list[int],
    repeats: int,
    backend: str = "auto",
    size: tuple[int, int] = SIZE,
    with_eager: bool = True,
    storage: str = "float32",
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Times `target`: on `images` [M,3,H,W] with its own gates, or, without images, on random patterns at `size`."""
    import copy

    from tqdm import tqdm

    from dynroute.measure.opened import open_model
    from dynroute.measure.timing import random_patterns, time_routes

    model = open_model(target.net, backend, storage, device)
    eager = open_model(copy.deepcopy(target.net), "eager", device=model.device).net if with_eager else None
    layers = target.net.config.layers
    plans: list[tuple[str, list[Tensor], list[Tensor | None]]] = []
    for batch in batches:
        if images is not None:
            whole = images[: max(batch, len(images) // batch * batch)].to(model.device)
            parts = list(whole.split(batch))
            plans.append(("own gates", parts, [None] * len(parts)))
            continue
        generator = torch.Generator().manual_seed(PATTERN_SEED)
        count = PATTERNS_EACH if batch == 1 else 1
        noise = torch.randn(batch, 3, *size, generator=generator).to(model.device, memory_format=torch.channels_last)
        for share in PATTERNS:
            patterns = random_patterns(layers, share, batch * count, PATTERN_SEED)
            plans.append((f"{share:.0%} of nodes", [noise] * count, list(patterns.to(model.device).split(batch))))
    rows = []
    with tqdm(total=len(plans) * (repeats + 1), desc="bench", unit="round", delay=2, leave=False) as bar:
        for label, parts, gates in plans:
            rows.append({"routes": label, **time_routes(model, parts, gates, repeats, eager, lambda: bar.update())})
    return {
        "model": target.label,
        "backend": model.label,
        "trained": target.trained,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        "storage": storage,
        "seed": PATTERN_SEED,
        "results": rows,
    }


def data_images(target: Target, data: str | None, split: str, count: int) -> Tensor:
    """The first `count` images of the first one's size, [M,3,H,W]; repeated where the data set has fewer."""
    source = open_data(target, data, split)
    found: list[Any] = []
    for index in range(len(source)):
        image, _ = source.read(index)
        if not found or image.shape == found[0].shape:
            found.append(image)
        if len(found) == count:
            break
    return input_tensor(target.normalise, [found[i % len(found)] for i in range(count)])


def print_result(result: dict[str, Any]) -> None:
    """The table on stdout."""
    where = f"{result['threads']} threads" if result["device"] == "cpu" else result["device"]
    print(f"{result['model']}: {result['backend']}, {where}")
    height, width = result["results"][0]["size"]
    rounds = result["results"][0]["repeats"]
    print(f"{height}x{width}, {result['storage']}; ms per image, median [p10-p90] of {rounds} rounds\n")

    def cell(row: dict[str, Any], name: str) -> str:
        ms = row["ms_per_image"].get(name)
        return f"{ms['median']:.2f} [{ms['p10']:.2f}-{ms['p90']:.2f}]" if ms else "-"

    print_table(
        ("batch, routes", "eager", "all open", "routed", "open nodes", "work", "time", "realised"),
        [
            (
                f"{row['batch']}, {row['routes']}", cell(row, "eager"), cell(row, "all_open"), cell(row, "routed"),
                f"{row['open_nodes']:.0%}", f"1/{row['work_ratio']:.2f}", f"1/{row['time_ratio']:.2f}",
                f"{row['realised_share']:.2f}",
            )
            for row in result["results"]
        ],
    )  # fmt: skip
    print("\nwork, time: of routed, against all open.  All open has its gates given, so it computes none of them.")
