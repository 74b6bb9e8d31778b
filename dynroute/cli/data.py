"""check reads every image and mask of a data set (images/<split>/ and masks/<split>/, Cityscapes or PASCAL VOC 2012 as
they are distributed, or shards: train-000000.tar, ...) as a training would, and goes on past what cannot be read: how
many images and of what sizes, pixels of each class, masks that are missing, values that are no class, broken files,
hidden files that are passed over, and images that lie in two splits with the same bytes.  The exit status is 1 where a
training would refuse the data set or learn something else than is meant; what may be meant is said, with status 0.  Of
folders of classes (train/<class>/*.jpg) it counts images instead of pixels.

pack writes a data set as shards, tars of a few hundred MB that are read from end to end, for disks and network storage
that are slow with many small files: of each sample KEY.jpg, the image's own bytes, and KEY.mask.png, its labels, in
the form of WebDataset; and classes.txt.  Samples are mixed once, always in the same way, so that every shard shows
something of everything.

--labels and --ignore are data.labels and data.ignore of a training: a map of stored values to classes, 255 being
"ignored", or a scheme: binary (0 and 255 are classes 0 and 1), cityscapes (label ids to the 19 classes),
cityscapes_train_ids (0..18), voc2012 (0..20), reduce_zero_label (0 is ignored, k is class k - 1).  The official layouts
of Cityscapes and PASCAL VOC need none."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from dynroute.cli.common import positive, print_lines, print_table, write_json
from dynroute.data.check import DataCheck, SplitCheck, check
from dynroute.data.check_classes import ClassCheck, check_classes
from dynroute.data.labels import SCHEMES
from dynroute.data.layout import list_splits
from dynroute.data.sets.classes import class_splits, is_classes
from dynroute.data.source import IGNORE

HELP = "read a whole data set before a training does, and say what is wrong with it; or pack it into shards"
EXAMPLES = (
    "dynroute data check /data/camvid",
    "dynroute data check /data/camvid --split train val --json check.json --out sheet.html   # with thumbnails",
    "dynroute data check /data/roads --labels binary                  # masks of 0 and 255",
    "dynroute data check /data/ade20k --labels reduce_zero_label      # classes counted from one",
    'dynroute data check /data/cells --labels "{127: 1, 254: 2}" --ignore 255',
    "dynroute data check /data/imagenet                               # train/<class>/*.jpg, val/<class>/*.jpg",
    "dynroute data check /data/fields --channels 4 --range 0 10000    # 16-bit TIFFs of four bands, or .npy [H,W,4]",
    "dynroute data pack /data/cityscapes --split train val --out /fast/cityscapes --size-mb 256",
    "dynroute train cityscapes_raw_l16 --set data.root=/fast/cityscapes     # shards are recognised",
)


def parse_labels(text: str) -> str | dict[int, int]:
    """A scheme's name, or a map such as `{255: 1}`; for argparse."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    if value in SCHEMES:
        return str(value)
    if isinstance(value, dict) and all(type(item) is int for pair in value.items() for item in pair):
        return value
    raise argparse.ArgumentTypeError(f"wanted {', '.join(SCHEMES)}, or a map such as '{{255: 1}}', got {text!r}")


def add_labels(parser: argparse.ArgumentParser) -> None:
    """--labels and --ignore, as `FolderDataset` takes them; None where they are left out."""
    parser.add_argument(
        "--labels",
        type=parse_labels,
        metavar="MAP",
        help=f"what the values of masks mean: '{{255: 1}}', or one of {', '.join(SCHEMES)}",
    )
    parser.add_argument("--ignore", type=int, metavar="N", help="the value of masks that is ignored (default: 255)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check", "pack"), metavar="check|pack", help="what to do")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder, or a pattern of shards")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="only these (default: all, train first)")
    add_labels(parser)
    parser.add_argument(
        "--channels", type=positive, default=3, metavar="N", help="data.channels of a training (default: 3)"
    )
    parser.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="data.range of a training")
    parser.add_argument(
        "--out", type=Path, metavar="PATH",
        help="check: a contact sheet, one HTML file with a dozen of each split; pack: the shards' folder",
    )  # fmt: skip
    parser.add_argument("--size-mb", type=positive, metavar="N", help="pack: of a shard, in 10^6 bytes (default: 256)")
    parser.add_argument("--keep-order", action="store_true", help="pack: samples by name instead of mixed")


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.action == "pack":
        from dynroute.cli.data_pack import run_pack

        return run_pack(args)
    if args.size_mb is not None or args.keep_order:
        raise ValueError("--size-mb, --keep-order: wanted with pack")
    found = _check_classes(args) if is_classes(args.root) else _check(args)
    if found.faults:
        if args.json is not None:
            write_json(args.json, found.to_json())
        raise ValueError(
            f"{args.root}: {_count(found.faults, 'fault')}, see above: a training would refuse or mislearn it"
        )
    return found.to_json()


def _check_classes(args: argparse.Namespace) -> ClassCheck:
    from dynroute.cli.data_classes import print_classes

    if args.out is not None or args.labels is not None or args.ignore is not None:
        raise ValueError(f"--out, --labels, --ignore: wanted with masks; {args.root} has folders of classes")
    splits = list(dict.fromkeys(args.split)) if args.split else class_splits(args.root)
    found = check_classes(args.root, splits, args.channels, args.range and tuple(args.range))
    print_classes(found)
    return found


def _check(args: argparse.Namespace) -> DataCheck:
    from dynroute.cli.data_sheet import write_sheet

    if args.out is not None and not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out {args.out}: wanted a file in a folder that exists")
    splits = list(dict.fromkeys(args.split)) if args.split else list_splits(args.root)
    with tqdm(desc="check", unit="file", delay=2, leave=False, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        ignore = IGNORE if args.ignore is None else args.ignore
        found = check(args.root, splits, args.labels, ignore, advance, args.channels, args.range and tuple(args.range))
    _print(found)
    if args.out is not None:
        write_sheet(args.out, args.root, found)
        print(f"contact sheet: {args.out}")
    return found


def _print(found: DataCheck) -> None:
    named = "" if found.labels is None else f", labels {found.labels}"
    print(f"{found.root}: {len(found.class_names)} classes, {found.ignore} is ignored{named}\n")
    print_table(
        ("split", "images", "with mask", "smallest", "largest", "sizes", "ignored pixels", "hidden", "unreadable"),
        [
            (
                split.split, split.images, split.pairs, *_ends(split), len(split.sizes), split.ignored,
                len(split.hidden), len(split.unreadable),
            )
            for split in found.splits
        ],
    )  # fmt: skip
    print()
    rows = [(name, [split.pixels.get(name, 0) for split in found.splits]) for name in found.class_names]
    made_up = found.class_names[:1] == ["class_0"]
    print_table(
        ("pixels of class", *(split.split for split in found.splits)),
        [
            (name, *(_share(count, split) for count, split in zip(counts, found.splits)))
            for name, counts in rows
            if any(counts) or not made_up
        ],
    )
    for split in found.splits:
        name = split.split
        print_lines(f"\n{name}: wrong", [*split.refused, *split.unreadable.values()])
        print_lines(f"\n{name}: to look at", split.said)
        print_lines(f"\n{name}: values outside the classes", [f"{v} ({n} pixels)" for v, n in split.outside.items()])
        print_lines(f"\n{name}: masks without an image, passed over", split.masks_without_image)
        print_lines(f"\n{name}: hidden files, passed over", split.hidden)
        print_lines(f"\n{name}: no images, passed over", split.others)
    print_lines("\nthe same bytes in two splits", [f"{first} and {second}" for first, second in found.duplicates])
    if not found.faults:
        print("\nnothing that a training would refuse")


def _ends(split: SplitCheck) -> tuple[str, str]:
    sizes = list(split.sizes) or ["-"]
    return sizes[0], sizes[-1]


def _share(count: int, split: SplitCheck) -> str:
    return f"{count} ({count / max(1, sum(split.pixels.values())):.1%})"


def _count(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}" + ("" if len(items) == 1 else "s")
