"""Writes two files for each image: NAME_overlay.png, the image under its class colours, and NAME_classes.png, a palette
PNG whose values are the class indices.  All images are decoded before the first file is written: a broken one stops
the command with nothing written."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynroute.cli.common import BACKENDS, add_device, add_storage, open_device, progress
from dynroute.cli.target import add_target, load_target
from dynroute.data.images import SUFFIXES, find_images, input_tensor, read_image

HELP = "segment images: a colour overlay and a class map of each"
EXAMPLES = (
    "dynroute segment runs/camvid photo.jpg --out out/",
    "dynroute segment runs/camvid/model photos/ --out out/ --json out.json   # with the cost of each image",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("images", type=Path, metavar="IMAGE_OR_FOLDER", help=f"{', '.join(SUFFIXES)}")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="made if it is missing")
    parser.add_argument("--backend", default="auto", choices=BACKENDS, help="default: auto")
    add_storage(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    from dynroute.measure.opened import open_model
    from dynroute.report.palette import class_map, overlay

    device = open_device(args.device, args.backend)
    target = load_target(args.model, args.small_gate)
    if not target.trained:
        raise ValueError(f"{args.model}: a name gives random weights; wanted a trained run, model folder or checkpoint")
    files = find_images(args.images)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: wanted a folder, this is a file")
    for file in progress(files, "check"):
        read_image(file)
    model = open_model(target.net, args.backend, args.storage, device)
    classes = target.net.config.num_classes
    args.out.mkdir(parents=True, exist_ok=True)
    results = []
    for file in progress(files, "segment"):
        image = read_image(file)
        started = time.perf_counter()
        out = model(input_tensor(target.normalise, [image]))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        labels = out.logits[0].argmax(0).to("cpu").numpy().astype(np.uint8)
        written = [args.out / f"{file.stem}_{kind}.png" for kind in ("overlay", "classes")]
        overlay(image, labels, classes).save(written[0])
        class_map(labels, classes).save(written[1])
        counts = np.bincount(labels.ravel(), minlength=classes) / labels.size
        full = model.all_open_work(*image.shape[:2])
        assert full is not None
        results.append(
            {
                "image": str(file),
                "overlay": str(written[0]),
                "classes": str(written[1]),
                "pixels": {name: round(float(share), 6) for name, share in zip(target.classes, counts) if share},
                "expected_mflops": float(out.expected_mflops[0]),
                "real_mflops": float(out.real_mflops[0]),
                "executed_macs": int(out.executed_macs[0]),
                "executed_share": int(out.executed_macs[0]) / full[0],
                "seconds": seconds,
            }
        )
        print(f"{file} -> {written[0].name}, {written[1].name}  ({results[-1]['executed_share']:.0%} of all open)")
    print(f"{len(results)} images, {model.label}; written to {args.out}")
    return {"model": args.model, "backend": model.label, "class_names": target.classes, "images": results}
