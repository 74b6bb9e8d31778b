"""Quality and costs over a data set: expected and real cost are the paper's, in MFLOPs (multiply-accumulates, 1e6);
executed work is counted by the runtime as it computes.  A run is evaluated on its own validation images unless --data
names others: a folder with images/<split>/ and masks/<split>/, or 'scenes'."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from dynroute.cli.common import BACKENDS, add_device, add_storage, open_device, positive, print_table
from dynroute.cli.data import add_labels
from dynroute.cli.target import add_target, load_target, open_data
from dynroute.data import FolderDataset
from dynroute.measure import evaluate, open_model

HELP = "evaluate a trained network: IoU of each class, and what it cost"
EXAMPLES = (
    "dynroute eval runs/scenes_quick",
    "dynroute eval runs/camvid/model --data /data/camvid --split test --json eval.json",
    "dynroute eval runs/roads --data /data/other --labels binary     # masks of 0 and 255 there",
    "dynroute eval runs/camvid --backend eager     # the plain PyTorch network, everything computed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--data", metavar="ROOT", help="data set folder, or 'scenes' (default: the run's own)")
    parser.add_argument("--split", default="val", help="split of --data (default: val)")
    add_labels(parser)
    parser.add_argument("--backend", default="auto", choices=[*BACKENDS, "eager"], help="default: auto")
    add_storage(parser)
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--images", type=positive, metavar="N", help="only the first N images")
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    device = open_device(args.device, args.backend)
    target = load_target(args.model, args.small_gate)
    source = open_data(target, args.data, args.split, args.labels, args.ignore)
    model = open_model(target.net, args.backend, args.storage, device)
    total = len(source) if args.images is None else min(args.images, len(source))
    with tqdm(total=total, desc="eval", unit="image", delay=2, leave=False, dynamic_ncols=True) as bar:
        found = evaluate(
            model, source, target.normalise, batch=args.batch, max_images=args.images, device=device,
            each=lambda done, _: bar.update(done - bar.n),
        )  # fmt: skip
    if isinstance(source, FolderDataset) and target.class_names and not (source.root / "classes.txt").is_file():
        # the data set does not name its classes, the network does
        found = replace(found, iou=dict(zip(target.class_names, found.iou.values())))
    full_work = model.all_open_mean()
    if full_work is not None:
        found = replace(found, costs={**found.costs, "all_open_executed_macs": full_work})
    shares = {}
    for key in ("expected_mflops", "real_mflops", "executed_macs"):
        full = found.costs.get(f"all_open_{key}")
        if full:
            shares[key] = found.costs[key] / full
    print(f"{args.model}: {total} images, {model.label}")
    names = [(name, "-" if value is None else f"{value:.4f}") for name, value in found.iou.items()]
    print_table(("class", "IoU"), [*names, ("mIoU", f"{found.miou or 0:.4f}")])
    print(f"\npixel accuracy {found.pixel_accuracy or 0:.4f}\n")
    words = {"expected_mflops": "expected (space)", "real_mflops": "real (paper)", "executed_macs": "executed"}
    print_table(
        ("cost per image", "MMACs", "of all open"),
        [
            (word, f"{found.costs[key] * (1e-6 if key == 'executed_macs' else 1):.1f}", f"{shares[key]:.1%}")
            for key, word in words.items()
            if key in shares
        ],
    )
    return {**found.to_json(), "shares": shares, "backend": model.label, "model": args.model}
