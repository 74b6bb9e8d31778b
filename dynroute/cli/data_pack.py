"""`dynroute data pack`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dynroute.cli.common import print_table
from dynroute.data.layout import list_splits
from dynroute.data.pack import Packed, pack
from dynroute.data.sets.folder import FolderDataset, known_classes
from dynroute.data.sets.shards import open_dataset
from dynroute.data.source import IGNORE

SIZE_MB = 256


def run_pack(args: argparse.Namespace) -> dict[str, Any]:
    """Packs the splits that are asked for, all that have labels where none is. Raises ValueError, OSError."""
    if args.out is None:
        raise ValueError("pack: wanted --out, the shards' folder")
    splits = list(dict.fromkeys(args.split)) if args.split else list_splits(args.root)
    ignore = IGNORE if args.ignore is None else args.ignore
    # as in a training: where nothing names the classes, the first split has to show them all
    classes = known_classes(args.root, splits[0], args.labels, ignore)
    found: list[Packed] = []
    for split in splits:
        source = open_dataset(
            args.root, split, classes, False, args.labels, ignore,
            channels=args.channels, value_range=args.range and tuple(args.range),
        )  # fmt: skip
        classes = len(source.class_names)
        if not source.labelled and not args.split:
            print(f"{split}: passed over, its labels are not public")
            continue
        found.append(_pack(source, args))
    print_table(
        ("split", "shards", "samples", "MB"),
        [(item.split, len(item.shards), sum(item.samples), f"{item.bytes / 1e6:.1f}") for item in found],
    )
    print(f"written to {args.out}; next: dynroute data check {args.out}")
    return {"root": str(args.root), "out": str(args.out), "splits": [asdict(item) for item in found]}


def _pack(source: FolderDataset, args: argparse.Namespace) -> Packed:
    size = (args.size_mb or SIZE_MB) * 1_000_000
    with tqdm(desc=f"pack {source.split}", unit="sample", delay=2, leave=False, dynamic_ncols=True) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return pack(source, Path(args.out), size, not args.keep_order, advance)
