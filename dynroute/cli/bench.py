"""Times the network with everything open against its routes, in interleaved rounds of one process, beside eager PyTorch
(channels_last).  A run is timed on its own validation images and its own gates; a network with random weights on seeded
random patterns of open nodes.  'realised' is the share of the saving that the clock shows:
(T_open / T_routed) / (work_open / work_routed), with work = executed multiply-accumulates."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from dynroute.cli.common import (
    BACKENDS,
    Target,
    add_target,
    check_device,
    input_tensor,
    load_target,
    open_data,
    parse_size,
    positive,
    print_table,
)

HELP = "time all-open against routed, per batch size"
EXAMPLES = (
    "dynroute bench runs/scenes_quick",
    "dynroute bench runs/scenes_quick --json runs/scenes_quick/bench.json   # the report picks this up",
    "dynroute bench dynamic_raw_l16 --size 512x1024 --batch 1 8 --threads 2",
)
PATTERNS = (0.3, 0.5, 0.7, 1.0)
PATTERN_SEED = 0
# Different routes cost differently: at batch 1 a round goes over this many images (or patterns).
IMAGES = 8
PATTERNS_EACH = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "--size", type=parse_size, metavar="HxW", help="image size for random patterns (default 512x1024)"
    )
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="N", help="default: 1 8")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: as many as torch takes")
    parser.add_argument(
        "--repeats", type=positive, default=11, metavar="N", help="rounds after the warm-up (default: 11)"
    )
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="default: auto")
    parser.add_argument("--data", metavar="ROOT", help="time a trained network on this data set ('scenes' also)")
    parser.add_argument("--split", default="val", help="split of --data (default: val)")
    parser.add_argument("--no-eager", action="store_true", help="leave eager PyTorch out")
    parser.add_argument("--device", default="cpu", help="cpu; GPUs are not supported yet")


def run(args: argparse.Namespace) -> dict[str, Any]:
    check_device(args.device)
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
            target, images, args.batch, args.repeats, args.backend, args.size or (512, 1024), not args.no_eager
        )
    finally:
        torch.set_num_threads(before)
    print_result(result)
    return result


def measure(
    target: Target,
    images: Tensor | None,
    batches: list[int],
    repeats: int,
    backend: str = "auto",
    size: tuple[int, int] = (512, 1024),
    with_eager: bool = True,
) -> dict[str, Any]:
    """Times `target`: on `images` [M,3,H,W] with its own gates, or, without images, on random patterns at `size`."""
    import copy

    from tqdm import tqdm

    from dynroute.report.timing import random_patterns, time_routes
    from dynroute.report.work import open_model

    model = open_model(target.net, backend)
    eager = open_model(copy.deepcopy(target.net), "eager").net if with_eager else None
    layers = target.net.config.layers
    plans: list[tuple[str, list[Tensor], list[Tensor | None]]] = []
    for batch in batches:
        if images is not None:
            parts = list(images[: max(batch, len(images) // batch * batch)].split(batch))
            plans.append(("own gates", parts, [None] * len(parts)))
            continue
        generator = torch.Generator().manual_seed(PATTERN_SEED)
        count = PATTERNS_EACH if batch == 1 else 1
        noise = torch.randn(batch, 3, *size, generator=generator).to(memory_format=torch.channels_last)
        for share in PATTERNS:
            patterns = random_patterns(layers, share, batch * count, PATTERN_SEED)
            plans.append((f"{share:.0%} of nodes", [noise] * count, list(patterns.split(batch))))
    rows = []
    with tqdm(total=len(plans) * (repeats + 1), desc="bench", unit="round", delay=2, leave=False) as bar:
        for label, parts, gates in plans:
            rows.append({"routes": label, **time_routes(model, parts, gates, repeats, eager, lambda: bar.update())})
    return {
        "model": target.label,
        "backend": model.label,
        "trained": target.trained,
        "threads": torch.get_num_threads(),
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
    print(f"{result['model']}: {result['backend']}, {result['threads']} threads")
    height, width = result["results"][0]["size"]
    print(f"{height}x{width}, float32; ms per image, median [p10-p90] of {result['results'][0]['repeats']} rounds\n")

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
