"""Quality and costs over a data set: expected and real cost are the paper's, in MFLOPs (multiply-accumulates, 1e6);
executed work is counted by the runtime as it computes.  A run is evaluated on its own validation images unless --data
names others: a folder with images/<split>/ and masks/<split>/, Cityscapes or PASCAL VOC 2012 as they are distributed,
or 'scenes'.

--submit also writes the predictions as the benchmarks' servers take them, full size, for split test too, which has no
labels.  Of Cityscapes FOLDER/<city>_<sequence>_<frame>_leftImg8bit.png, label ids (not train ids); of PASCAL VOC
FOLDER/results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png, class indices.  The folder has to be new or empty; it is
there when all images are."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynroute.cli.common import BACKENDS, add_device, add_storage, open_device, positive, print_alarms, print_table
from dynroute.cli.data import add_labels
from dynroute.cli.target import add_target, load_target, open_data, run_config
from dynroute.data import FolderDataset
from dynroute.data.submission import Submission
from dynroute.measure import evaluate, open_model
from dynroute.measure.alarms import in_words, of_routing
from dynroute.train.config import Config, load_config

HELP = "evaluate a trained network: IoU of each class, and what it cost"
EXAMPLES = (
    "dynroute eval runs/scenes_quick",
    "dynroute eval runs/camvid/model --data /data/camvid --split test --json eval.json",
    "dynroute eval runs/roads --data /data/other --labels binary     # masks of 0 and 255 there",
    "dynroute eval runs/camvid --backend eager     # the plain PyTorch network, everything computed",
    "dynroute eval runs/cityscapes --data /data/cityscapes --split test --submit cityscapes_test",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target(parser)
    parser.add_argument("--data", metavar="ROOT", help="data set folder, or 'scenes' (default: the run's own)")
    parser.add_argument("--split", help="split of --data, or of the run's own data set (default: val)")
    add_labels(parser)
    parser.add_argument("--backend", default="auto", choices=[*BACKENDS, "eager"], help="default: auto")
    add_storage(parser)
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--images", type=positive, metavar="N", help="only the first N images")
    parser.add_argument("--submit", type=Path, metavar="FOLDER", help="write predictions for the benchmark's server")
    add_device(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    device = open_device(args.device, args.backend)
    target = load_target(args.model, args.small_gate)
    data = args.data
    if data is None and args.split is not None:
        data = run_config(target).get("data", {}).get("root")
        if data is None:
            raise ValueError("--split: wanted with --data ROOT, or a run on a folder of images")
    source = open_data(target, data, args.split or "val", args.labels, args.ignore)
    model = open_model(target.net, args.backend, args.storage, device)
    total = len(source) if args.images is None else min(args.images, len(source))
    submission = None if args.submit is None else Submission(args.submit, source, target.class_names)
    with (
        submission or nullcontext(),
        tqdm(total=total, desc="eval", unit="image", delay=2, leave=False, dynamic_ncols=True) as bar,
    ):
        found = evaluate(
            model, source, target.normalise, batch=args.batch, max_images=args.images, device=device,
            each=lambda done, _: bar.update(done - bar.n),
            predictions=None if submission is None else submission.add,
        )  # fmt: skip
    if isinstance(source, FolderDataset) and target.class_names and not source.named:
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
    print_table(("class", "IoU"), [(name, _score(value)) for name, value in (*found.iou.items(), ("mIoU", found.miou))])
    print(f"\npixel accuracy {_score(found.pixel_accuracy)}\n")
    words = {"expected_mflops": "expected (space)", "real_mflops": "real (paper)", "executed_macs": "executed"}
    print_table(
        ("cost per image", "MMACs", "of all open"),
        [
            (word, f"{found.costs[key] * (1e-6 if key == 'executed_macs' else 1):.1f}", f"{shares[key]:.1%}")
            for key, word in words.items()
            if key in shares
        ],
    )
    trained_as = load_config(target.run / "config.yaml") if target.run is not None else Config()
    alarms = of_routing(found.routes, found.shares, target.net.config, trained_as.budget, trained_as.data.crop)
    if found.routes is not None:
        print(f"\nroutes: {in_words(found.routes)}")
    print_alarms(alarms)
    if submission is not None:
        print(f"\nfor the server: {total} predictions in {submission.folder}")
    submitted = {} if submission is None else {"submitted": str(submission.folder)}
    result = {**found.to_json(), "shares": shares, "alarms": [alarm.to_json() for alarm in alarms]}
    return {**result, "backend": model.label, "model": args.model, **submitted}


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
