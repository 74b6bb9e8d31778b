"""What `dynroute data check` says of folders of classes."""

from __future__ import annotations

from dynroute.cli.common import print_lines, print_table
from dynroute.data.check_classes import ClassCheck, ClassSplitCheck

# More classes than this are shown by those with the fewest and the most images.
_MOST_CLASSES = 40
_OF_EACH_END = 10


def print_classes(found: ClassCheck) -> None:
    """The table of the splits, that of the classes, and the lines on what is wrong."""
    print(f"{found.root}: {len(found.class_names)} classes, one folder each\n")
    print_table(
        ("split", "images", "classes", "fewest", "most", "smallest", "largest", "sizes", "hidden", "unreadable"),
        [_row(split) for split in found.splits],
    )
    names = found.class_names
    if len(names) > _MOST_CLASSES:
        by_count = sorted(names, key=lambda name: found.splits[0].counts.get(name, 0))
        names = by_count[:_OF_EACH_END] + by_count[-_OF_EACH_END:]
        print(f"\nthe {_OF_EACH_END} classes with the fewest images and the {_OF_EACH_END} with the most:", end="")
    print()
    print_table(
        ("images of class", *(split.split for split in found.splits)),
        [(name, *(split.counts.get(name, 0) for split in found.splits)) for name in names],
    )
    for split in found.splits:
        print_lines(f"\n{split.split}: wrong", [*split.refused, *split.unreadable.values()])
        print_lines(f"\n{split.split}: to look at", split.said)
        print_lines(f"\n{split.split}: hidden files, passed over", split.hidden)
        print_lines(f"\n{split.split}: no images, passed over", split.others)
    print_lines("\nthe same bytes in two splits", [f"{first} and {second}" for first, second in found.duplicates])
    print_lines("\nthe same bytes in two classes", [f"{first} and {second}" for first, second in found.two_classes])
    if not found.faults:
        print("\nnothing that a training would refuse")


def _row(split: ClassSplitCheck) -> tuple[object, ...]:
    counts, sizes = list(split.counts.values()) or [0], list(split.sizes) or ["-"]
    return (
        split.split, split.images, sum(map(bool, counts)), min(counts), max(counts), sizes[0], sizes[-1],
        len(split.sizes), len(split.hidden), len(split.unreadable),
    )  # fmt: skip
