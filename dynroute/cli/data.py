"""check reads every image and mask of a data set (images/<split>/ and masks/<split>/, or Cityscapes' official folders)
as a training would, and goes on past what cannot be read: how many images and of what sizes, pixels of each class,
masks that are missing, values that are no class, broken files, hidden files that are passed over, and images that lie
in two splits with the same bytes.  The exit status is 1 where a training would refuse the data set or learn something
else than is meant; what may be meant is said, with status 0.

--labels and --ignore are data.labels and data.ignore of a training: a map of stored values to classes, 255 being
"ignored", or a scheme: binary (0 and 255 are classes 0 and 1), cityscapes (label ids to the 19 classes),
reduce_zero_label (0 is ignored, k is class k - 1)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from dynroute.cli.common import print_table, write_json
from dynroute.data.check import DataCheck, SplitCheck, check
from dynroute.data.labels import SCHEMES
from dynroute.data.layout import list_splits
from dynroute.data.source import IGNORE

HELP = "read a whole data set before a training does, and say what is wrong with it"
EXAMPLES = (
    "dynroute data check /data/camvid",
    "dynroute data check /data/camvid --split train val --json check.json --out sheet.html   # with thumbnails",
    "dynroute data check /data/roads --labels binary                  # masks of 0 and 255",
    "dynroute data check /data/ade20k --labels reduce_zero_label      # classes counted from one",
    'dynroute data check /data/cells --labels "{127: 1, 254: 2}" --ignore 255',
)
_SHOWN = 10


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
    parser.add_argument("action", choices=("check",), metavar="check", help="what to do; there is one thing so far")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the data set's folder")
    parser.add_argument("--split", nargs="+", metavar="NAME", help="only these (default: all, train first)")
    add_labels(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="contact sheet: one HTML file, a dozen of each split")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from dynroute.cli.data_sheet import write_sheet

    if args.out is not None and not args.out.resolve().parent.is_dir():
        raise ValueError(f"--out {args.out}: wanted a file in a folder that exists")
    splits = list(dict.fromkeys(args.split)) if args.split else list_splits(args.root)
    with tqdm(desc="check", unit="file", delay=2, leave=False, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        found = check(args.root, splits, args.labels, IGNORE if args.ignore is None else args.ignore, advance)
    _print(found)
    if args.out is not None:
        write_sheet(args.out, args.root, found)
        print(f"contact sheet: {args.out}")
    if found.faults:
        if args.json is not None:
            write_json(args.json, found.to_json())
        raise ValueError(
            f"{args.root}: {_count(found.faults, 'fault')}, see above: a training would refuse or mislearn it"
        )
    return found.to_json()


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
        _lines(f"\n{name}: wrong", [*split.refused, *split.unreadable.values()])
        _lines(f"\n{name}: to look at", split.said)
        _lines(f"\n{name}: values outside the classes", [f"{v} ({n} pixels)" for v, n in split.outside.items()])
        _lines(f"\n{name}: masks without an image, passed over", split.masks_without_image)
        _lines(f"\n{name}: hidden files, passed over", split.hidden)
        _lines(f"\n{name}: no images, passed over", split.others)
    _lines("\nthe same bytes in two splits", [f"{first} and {second}" for first, second in found.duplicates])
    if not found.faults:
        print("\nnothing that a training would refuse")


def _ends(split: SplitCheck) -> tuple[str, str]:
    sizes = list(split.sizes) or ["-"]
    return sizes[0], sizes[-1]


def _share(count: int, split: SplitCheck) -> str:
    return f"{count} ({count / max(1, sum(split.pixels.values())):.1%})"


def _lines(head: str, lines: Sequence[str]) -> None:
    """A list under its head; nothing where there is none."""
    if not lines:
        return
    print(f"{head}: {len(lines)}")
    for line in _first(lines):
        print(f"  {line}")


def _first(lines: Sequence[str]) -> Iterable[str]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"... and {len(lines) - _SHOWN} more; --json has them all"


def _count(items: Sequence[object], word: str) -> str:
    return f"{len(items)} {word}" + ("" if len(items) == 1 else "s")
