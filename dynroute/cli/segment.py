"""Writes for each image NAME_overlay.png, the image under its class colours, and NAME_classes.png, a palette PNG whose
values are the class indices; with --confidence also NAME_confidence.png, 16-bit grey, the class's probability times
65535.  Images are files, folders with all their folders, patterns in quotes, or shards (tars); the tree below what is
named is kept in --out: photos/a/1.jpg becomes OUT/a/1_classes.png.

What is done already is passed over, so a run that was stopped goes on when it is started again; --overwrite does it
anew.  Results know what made them: those of another network or other settings are refused, files of others are never
overwritten, and results that lie among the images are not segmented again.

Before anything is written all images are looked at, small sets (256 megapixels) decoded whole, larger ones by their
headers, those in shards as they come: a broken one stops the command.  --skip-broken goes on past it, reports it, and
ends with status 1.

Large pictures go through the network in tiles that overlap (--tile, --overlap): by themselves where the whole would
take over 2 GiB.  In the middle half of an overlap the logits of both tiles are mixed, its outer quarters belong to one
tile.  Gates see a tile alone, so routes differ between tiles, and between a tile and the whole picture: labels may too.
Costs are sums over tiles.

Under torchrun each process takes its share of the images (of shards, whole tars) and says what it did; the first one
writes --json, for all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from dynroute.cli.common import BACKENDS, add_device, add_storage, one_line, open_device, parse_size, positive
from dynroute.cli.segment_job import Job
from dynroute.cli.segment_results import Results, stamp
from dynroute.cli.target import add_target, load_target
from dynroute.data.images import SUFFIXES, most_pixels
from dynroute.measure.segment import segment
from dynroute.measure.tiles import MOST_BYTES, OVERLAP, TILE, check_tile
from dynroute.train.processes import Team, assembled

T = TypeVar("T")
HELP = "segment images: a colour overlay and a class map of each"
EXAMPLES = (
    "dynroute segment runs/camvid photo.jpg --out out/",
    "dynroute segment runs/camvid/model photos/ --out out/ --json out.json   # with the cost of each image",
    "dynroute segment runs/camvid 'photos/**/*_left.jpg' --out out/          # the same command again goes on",
    "dynroute segment runs/fields scene.tif --out out/ --tile 1024x1024 --overlap 256 --batch 4",
    "dynroute segment runs/cells slides/ --out out/ --range 0 4095           # 12 bits in files of 16",
    "dynroute segment runs/camvid photos/ --out out/ --only classes --skip-broken",
    "torchrun --nproc_per_node 4 -m dynroute.cli segment runs/camvid shards/ --out out/ --json out.json",
)


def parse_tile(text: str) -> tuple[int, int] | str:
    """`HxW`, auto or none; for argparse."""
    return text if text in ("auto", "none") else parse_size(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGES", help=f"files ({', '.join(SUFFIXES)}), folders, 'patterns', or shards"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if it is missing")
    parser.add_argument("--only", choices=("overlay", "classes"), help="write this alone of the two")
    parser.add_argument("--confidence", action="store_true", help="also write the probability of each pixel's class")
    parser.add_argument("--overwrite", action="store_true", help="segment again what is done already")
    parser.add_argument("--skip-broken", action="store_true", help="go on past images that cannot be read or segmented")
    parser.add_argument(
        "--tile", type=parse_tile, default="auto", metavar="HxW",
        help=f"cut larger pictures: multiples of 32 pixels; none; or auto, {TILE[0]}x{TILE[1]} for those that would "
        f"take over {MOST_BYTES >> 30} GiB (default: auto)",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=int, default=OVERLAP, metavar="PIXELS",
        help=f"of neighbouring tiles, a multiple of 32 (default: {OVERLAP})",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=positive, default=1, metavar="N", help="tiles or images of one size at once (default: 1)"
    )
    parser.add_argument(
        "--range", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="the stored values that become 0 and 255 (default: as in training, data.range)",
    )  # fmt: skip
    parser.add_argument(
        "--max-pixels", type=positive, metavar="N",
        help="read pictures of up to N pixels; more is taken for a decompression bomb (default: Pillow's 178956970)",
    )  # fmt: skip
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="default: auto")
    add_storage(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    from dynroute.measure.opened import open_model

    device = open_device(args.device, args.backend)
    try:
        check_tile(TILE if isinstance(args.tile, str) else args.tile, args.overlap)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    target = load_target(args.model, args.small_gate)
    if not target.trained:
        raise ValueError(f"{args.model}: a name gives random weights; wanted a trained run, model folder or checkpoint")
    normalise = target.normalise if args.range is None else replace(target.normalise, range=tuple(args.range))
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: wanted a folder, this is a file")
    kinds = [kind for kind in ("overlay", "classes") if args.only in (None, kind)]
    kinds += ["confidence"] if args.confidence else []
    settings = {
        "network": asdict(target.net.config), "normalise": asdict(normalise), "storage": args.storage,
        "tile": args.tile, "overlap": args.overlap,
    }  # fmt: skip
    results = Results(args.out, kinds, stamp(target.net, settings), args.overwrite)
    if device.type == "cuda" and ":" not in (args.device or ""):
        device = torch.device("cuda")  # of several processes each takes the GPU of its own number
    with most_pixels(args.max_pixels), assembled(device) as team:
        job = Job(args, target, normalise, results, team)
        wanted = _agreed(team, job.wanted)
        model = open_model(target.net, args.backend, args.storage, team.device)
        bar = tqdm(
            total=len(wanted), desc="segment", unit="image", delay=2, leave=False, dynamic_ncols=True, miniters=0,
            disable=not team.leads,
        )  # fmt: skip
        with job.pool, bar as job.bar:
            for found in segment(
                model, job.images(wanted), normalise, job.tiles, batch=args.batch, confidence=args.confidence,
                each=job.show,
            ):  # fmt: skip
                job.keep(found)
            job.settle_all()
        return job.finish(model.label)


def _agreed(team: Team, act: Callable[[], T]) -> T:
    """What this process finds; where one process fails, all of them do, so that none has begun to write."""
    found, fault = None, None
    try:
        found = act()
    except (ValueError, OSError) as error:
        fault = one_line(error)
    for other in team.listed(fault):
        if other is not None:
            raise ValueError(other)
    return found  # type: ignore[return-value]
