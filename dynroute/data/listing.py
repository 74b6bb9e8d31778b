"""The files of one split of a data set, whatever its layout: pairs of an image and its mask, and what lies beside."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dynroute.data.masks import Tally, read_values, tally
from dynroute.data.source import File

_OF_CITYSCAPES = ("cityscapes", "cityscapes_train_ids")


@dataclass
class Listing:
    """The files of one split.

    Attributes:
        layout: its name: `folder`, `cityscapes`, `voc2012`, `sbd`, `shards`.
        folder: of its masks.
        labels: the scheme that the layout itself implies.
        withheld: whether its makers keep the labels to themselves, so that masks are missing or say nothing.
        read: the values [H,W] that a mask of this layout stores, see `read_values`.
        tally: counts the values of its masks, see `masks.tally`.
        pairs: image and mask; no mask only where it is withheld.
        images: how many there are, with and without a mask.
        faults: images that have no mask or share a stem, a line each.
        unpaired: masks that have no image.
        hidden: hidden files, such as operating systems leave, passed over.
        others: what else lies among the images and is none, passed over.
    """

    layout: str
    folder: Path
    labels: str | None = None
    withheld: bool = False
    read: Callable[..., np.ndarray] = read_values
    tally: Callable[..., Tally] = tally
    pairs: list[tuple[File, File | None]] = field(default_factory=list)
    images: int = 0
    faults: list[str] = field(default_factory=list)
    unpaired: list[File] = field(default_factory=list)
    hidden: list[File] = field(default_factory=list)
    others: list[File] = field(default_factory=list)

    def add(
        self,
        images: Iterable[tuple[str, File]],
        masks: Iterable[tuple[str, File]],
        wanted: Callable[[str], Path | str],
    ) -> None:
        """More images and masks, each with its stem; `wanted` says where the mask of a stem was looked for."""
        by_stem: dict[str, list[File]] = {}
        for stem, path in masks:
            by_stem.setdefault(stem, []).append(path)
        seen: dict[str, File] = {}
        for stem, path in images:
            self.images += 1
            own = by_stem.pop(stem, [])
            if stem in seen:
                self.faults.append(f"{path}: two images share the stem of {seen[stem].name}, wanted one")
            elif len(own) > 1:
                self.faults.append(f"{own[1]}: two masks for the image {path}, the other is {own[0].name}, wanted one")
            elif own or self.withheld:
                self.pairs.append((path, own[0] if own else None))
            else:
                self.faults.append(f"{wanted(stem)}: no such mask, wanted one for the image {path}")
            seen.setdefault(stem, path)
        self.unpaired += [path for paths in by_stem.values() for path in paths]

    def scheme(self, given: str | Mapping[int, int] | None) -> str | Mapping[int, int] | None:
        """What `Labels` is made of: what was asked for, or else what the layout implies.

        Which of its two numberings Cityscapes' masks are in is seen in their names, whichever was asked for.
        """
        own = given is None or (given in _OF_CITYSCAPES and self.labels in _OF_CITYSCAPES)
        return self.labels if own else given
