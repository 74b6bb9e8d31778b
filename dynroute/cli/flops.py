"""Counts multiply-accumulates of a network at an image size or on images, node by node.

dense     the paper's count with everything open
expected  the paper's soft cost of the routing space: each cell and path weighted by its alpha; what a budget acts on
real      the paper's count by open and closed, with all gates, stem and decoder
executed  the convolutions that the runtime really did, counted as they were done

--gates open (default) opens everything; a run's folder opens the paths that are open in more than half of its
validation images; a fixed network's name (unet, hrnetv2, ...) opens that; own takes the network's own gates on
--images."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynroute.cli.common import BACKENDS, parse_size, positive, print_table
from dynroute.cli.target import Target, add_target, load_target
from dynroute.data.images import find_images, input_tensor, read_image
from dynroute.measure import open_model
from dynroute.measure.count import Counted, count, mean_nodes
from dynroute.space import routes
from dynroute.space.wiring import DOWN, PART_NAMES, SCALES, UP, build_space

HELP = "count a network's cost: expected, real, executed, by layer and scale"
EXAMPLES = (
    "dynroute flops dynamic_raw_l16 --size 768x768",
    "dynroute flops fix_l16 --size 1024x2048 --published-decoder   # as the published figures count",
    "dynroute flops dynamic_raw_l16 --size 512x1024 --gates unet",
    "dynroute flops runs/camvid --images photos/ --json flops.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--size", type=parse_size, metavar="HxW", help="image size in pixels")
    where.add_argument("--images", type=Path, metavar="IMAGE_OR_FOLDER", help="a trained network's own gates on these")
    parser.add_argument(
        "--gates", metavar="open|RUN|NAME|own", help="which paths are open (default: open; own on images)"
    )
    parser.add_argument("--classes", type=positive, metavar="K", help="classes of a named model (default: 19)")
    parser.add_argument(
        "--published-decoder", action="store_true",
        help="count the decoder with its height for its width, as the published code does",
    )  # fmt: skip
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="what counts the executed work")


def run(args: argparse.Namespace) -> dict[str, Any]:
    target = load_target(args.model, args.small_gate, args.classes)
    if args.classes is not None and args.classes != target.net.config.num_classes:
        raise ValueError(f"--classes {args.classes}: {args.model} has {target.net.config.num_classes}")
    images = _inputs(args, target)
    choice = args.gates or ("own" if args.images is not None else "open")
    if choice == "own" and args.images is None:
        raise ValueError("--gates own: wanted --images to compute the gates on")
    gates = None if choice == "own" else chosen_gates(choice, target)
    model = open_model(target.net, args.backend)
    samples = count(model, images, gates, args.published_decoder)
    _print(args.model, model.label, choice, samples)
    nodes = mean_nodes(samples)
    _print_nodes(target.net.config.layers, nodes)
    return {
        "model": args.model,
        "backend": model.label,
        "gates": choice,
        "published_decoder": args.published_decoder,
        "samples": [_record(sample) for sample in samples],
        "executed_nodes_mmacs": {"parts": list(PART_NAMES), "values": nodes.tolist()},
    }


def _record(sample: Counted) -> dict[str, Any]:
    return {
        "name": sample.name,
        "size": list(sample.size),
        **asdict(sample.costs),
        "halo_mmacs": sample.halo_mmacs,
        "dense": asdict(sample.dense),
        "parts": sample.parts,
    }


def chosen_gates(choice: str, target: Target) -> Tensor:
    """Alphas [L+1,4,3] for `open`, a fixed network's name, or the paths most images of a run open."""
    layers = target.net.config.layers
    if choice == "open":
        return torch.ones(layers + 1, SCALES, 3)
    if choice in routes.list_fixed():
        return routes.fixed(choice, layers).float()
    record = Path(choice) / "eval.json"
    if not record.is_file():
        raise ValueError(
            f"--gates {choice}: wanted open, own, a run's folder (with eval.json), "
            f"or one of {', '.join(routes.list_fixed())}"
        )
    try:
        probability = torch.tensor(json.loads(record.read_text())["gates"]["open_probability"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{record}: wanted an evaluation with gates.open_probability ({error!r})") from None
    if tuple(probability.shape) != (layers + 1, SCALES, 3):
        raise ValueError(
            f"{record}: gates of shape {list(probability.shape)}, but {target.label} has {[layers + 1, SCALES, 3]}"
        )
    return routes.common(probability).float()


def _inputs(args: argparse.Namespace, target: Target) -> list[tuple[str, Tensor]]:
    """Names and images [1,I,H,W]."""
    if args.images is None:
        return [(f"{args.size[0]}x{args.size[1]}", torch.zeros(1, target.net.config.in_channels, *args.size))]
    if not target.trained:
        raise ValueError(
            f"{args.model}: a name gives random weights, whose gates on images mean nothing; wanted --size"
        )
    normalise = target.normalise
    images = ((file.name, read_image(file, normalise.channels, normalise.range)) for file in find_images(args.images))
    return [(name, input_tensor(normalise, [image])) for name, image in images]


def _print(label: str, backend: str, choice: str, samples: list[Counted]) -> None:
    print(f"{label}, gates {choice}, {backend}; millions of multiply-accumulates (the paper's MFLOPs)\n")

    def share(sample: Counted, key: str) -> str:
        value = getattr(sample.costs, key)
        return f"{value:.1f} ({value / getattr(sample.dense, key):.0%})"

    keys = ("expected_mflops", "real_mflops", "executed_mmacs", "executed_space_mmacs")
    rows = [
        (sample.name, f"{sample.dense.real_mflops:.1f}", *[share(sample, key) for key in keys]) for sample in samples
    ]
    print_table(("sample", "dense", "expected (space)", "real", "executed", "executed (space)"), rows)
    parts = samples[0].parts
    print(
        f"\nexpected, all open: {samples[0].dense.expected_mflops:.1f};  gates {parts['gates']:.1f}, "
        f"stem {parts['stem']:.1f}, decoder {parts['decoder']:.1f} (paper's count; always in real)"
    )


def _print_nodes(layers: int, nodes: Tensor) -> None:
    """nodes float64 [L+1,4,5]."""
    print("\nexecuted by node, mean over samples: cell + up + down (gate), M; '.' computed nothing, '-' no such path\n")
    rows = []
    for members in build_space(layers):
        row = members[0].row
        cells = []
        for scale in range(SCALES):
            if scale >= len(members):
                cells.append("")
                continue
            gate, cell, up, _, down = nodes[row, scale].tolist()
            if gate + cell + up + down == 0:
                cells.append(".")
                continue
            paths = [f"{cell:.1f}"]
            for path, work in ((UP, up), (DOWN, down)):
                paths.append("-" if not members[scale].paths[path] else f"{work:.1f}" if work else ".")
            cells.append(" + ".join(paths) + (f" ({gate:.1f})" if gate else ""))
        rows.append(["init" if row == 0 else f"layer {row - 1}", *cells, f"{float(nodes[row].sum()):.1f}"])
    print_table(["", *[f"1/{4 << s}" for s in range(SCALES)], "sum"], rows)
