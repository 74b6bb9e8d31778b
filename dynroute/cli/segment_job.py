"""What a process of `dynroute segment` does: finds its images, reads them, writes what becomes of them, sums up."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from dynroute.cli.common import one_line, progress, write_json
from dynroute.cli.segment_results import Results, ours
from dynroute.cli.target import Target
from dynroute.data import DataError, Normalise
from dynroute.data.channels import visible
from dynroute.data.images import TooLargeError, image_area, read_image
from dynroute.data.parallel import in_threads
from dynroute.data.pictures import Picture, find_pictures
from dynroute.data.source import File
from dynroute.measure.segment import Segmented
from dynroute.measure.tiles import MOST_BYTES, TILE, Tiles, cut, memory
from dynroute.train.processes import Team

# Sets of no more pixels are decoded once before anything is written: some seconds.
CHECKED_PIXELS = 2**28
# Results are encoded in so many threads; what waits for them is bounded in images and in pixels.
WRITERS = 4
WAITING_PIXELS = 2**26


@dataclass
class Done:
    """What a process did.

    Attributes:
        rows: a record of each image that it segmented.
        skipped: images whose results were there.
        broken: what was wrong, by image.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{_images(len(self.rows))} segmented"]
        words += [f"{self.skipped} done before, passed over (--overwrite does them again)"] if self.skipped else []
        words += [f"{len(self.broken)} broken"] if self.broken else []
        return ", ".join(words)


@dataclass
class Job:
    """One process's part of the work.

    Attributes:
        args: the command's.
        target: the network.
        normalise: how images become its input.
        results: where they go.
        team: the processes.
        done: what this one did so far.
        bar: shows how far it is.
        pool, writing: what encodes and writes results, and what it has to do: images, and how many pixels they have.
    """

    args: argparse.Namespace
    target: Target
    normalise: Normalise
    results: Results
    team: Team
    done: Done = field(default_factory=Done)
    bar: tqdm = field(default_factory=lambda: tqdm(disable=True))
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WRITERS))
    writing: deque[tuple[Future, int]] = field(default_factory=deque)

    def wanted(self) -> list[Picture]:
        """The images that this process is to segment. Raises ValueError for the first that cannot be read."""
        pictures = find_pictures(self.args.images, ours, self.team.rank, self.team.size)
        there = in_threads(lambda picture: self.results.done(picture.name), pictures, "look")
        wanted = [picture for picture, done in zip(pictures, there) if not done]
        self.done.skipped = len(pictures) - len(wanted)
        files = [picture.file for picture in wanted]
        # members of shards were found by their headers; those of the images would be read with all that follows
        if self.args.skip_broken or not all(isinstance(file, Path) for file in files):
            return wanted
        try:
            pixels = sum(in_threads(image_area, files, "look"))
            for file in progress(files if pixels <= CHECKED_PIXELS else [], "check"):
                self.read(file)
        except DataError as error:
            raise ValueError(_explained(error)) from None
        return wanted

    def read(self, file: File) -> np.ndarray:
        """An image, uint8 [H,W,C]."""
        return read_image(file, self.normalise.channels, self.normalise.range)

    def tiles(self, height: int, width: int) -> Tiles:
        """How an image of this size is cut."""
        tile = self.args.tile
        if tile == "auto":
            tile = TILE if memory(self.target.net.config, height, width) > MOST_BYTES else "none"
        return cut(height, width, None if tile == "none" else tile, self.args.overlap)

    def images(self, wanted: list[Picture]) -> Iterator[tuple[Picture, np.ndarray]]:
        """Each image, decoded; broken ones are noted and passed over where that is wanted."""
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(self.read, picture.file) for picture in wanted[:1]]
            for number, picture in enumerate(wanted):
                reading = ahead.pop()
                ahead += [pool.submit(self.read, following.file) for following in wanted[number + 1 : number + 2]]
                try:
                    image = reading.result()
                except (DataError, OSError) as error:
                    self.broken(picture, _explained(error))
                    continue
                self.say_tiles(picture, *image.shape[:2])
                yield picture, image

    def say_tiles(self, picture: Picture, height: int, width: int) -> None:
        """Says of an image that it is cut, where nobody asked for it."""
        tiles = self.tiles(height, width)
        if self.args.tile == "auto" and len(tiles) > 1:
            size = memory(self.target.net.config, height, width) / 2**30
            self.say(
                f"{picture.file}: {height}x{width} would take about {size:.1f} GiB at once, so it goes through in "
                f"{len(tiles)} tiles of {tiles.size[0]}x{tiles.size[1]} (--tile none: whole)"
            )

    def keep(self, found: Segmented[Picture]) -> None:
        """Has an image's results written, while others are segmented; not so many that they pile up."""
        if not found.finite:
            fault = f"{found.key.file}: the network's output for it is not finite (NaN or infinity)"
            self.broken(found.key, fault)
            return
        self.writing.append((self.pool.submit(self.write, found), found.labels.size))
        while len(self.writing) > WRITERS or sum(pixels for _, pixels in self.writing) > WAITING_PIXELS:
            self.settle()

    def settle(self) -> None:
        """Waits for the image that is written longest, and notes it."""
        row, line = self.writing.popleft()[0].result()
        self.done.rows.append(row)
        self.say(line)
        self.bar.update()

    def settle_all(self) -> None:
        """Waits until everything is written."""
        while self.writing:
            self.settle()

    def write(self, found: Segmented[Picture]) -> tuple[dict[str, Any], str]:
        """Writes the results of an image; its record, and a line about it."""
        from dynroute.report.palette import class_map, overlay

        picture, labels, classes = found.key, found.labels, self.target.net.config.num_classes
        made: dict[str, Callable[[], Image.Image]] = {
            "overlay": lambda: overlay(visible(found.image), labels, classes),
            "classes": lambda: class_map(labels, classes),
            "confidence": lambda: Image.fromarray(found.confidence),  # type: ignore[arg-type]
        }
        written = {kind: self.results.write(picture.name, kind, made[kind]()) for kind in self.results.kinds}
        # part by part: numpy counts in a copy of eight times the size
        parts = np.array_split(labels, 1 + labels.size // 2**24)
        counts = np.sum([np.bincount(part.ravel(), minlength=classes) for part in parts], axis=0) / labels.size
        share = found.executed_macs / found.all_open_macs
        row = {
            "image": str(picture.file),
            **{kind: str(written[kind]) if kind in written else None for kind in made},
            "size": list(labels.shape),
            "tiles": found.tiles,
            "pixels": {name: round(float(part), 6) for name, part in zip(self.target.classes, counts) if part},
            "expected_mflops": found.expected_mflops,
            "real_mflops": found.real_mflops,
            "executed_macs": found.executed_macs,
            "executed_share": share,
            "seconds": found.seconds,
        }
        names = ", ".join(path.name for path in written.values())
        tiles = f", {found.tiles} tiles" if found.tiles > 1 else ""
        return row, f"{picture.file} -> {names}  ({share:.0%} of all open{tiles})"

    def broken(self, picture: Picture, fault: str) -> None:
        """Notes an image without results. Raises ValueError where that ends the command."""
        if not self.args.skip_broken:
            self.settle_all()
            count = len(self.done.rows)
            left = f"; {_images(count)} done before it, the same command goes on after them" if count else ""
            raise ValueError(f"{fault}{left} (--skip-broken passes it over)")
        self.done.broken[str(picture.file)] = fault
        self.bar.clear()
        print(f"dynroute: {fault}", file=sys.stderr)

    def show(self, tile: int, tiles: int) -> None:
        """How far an image of many tiles is."""
        self.bar.set_postfix_str(f"tile {tile} of {tiles}" if tiles > 1 else "", refresh=False)
        self.bar.update(0)  # draws no more often than a bar does

    def say(self, line: str) -> None:
        """To the user, with the process's number where there are several."""
        self.bar.clear()
        print(f"rank {self.team.rank} of {self.team.size}: {line}" if self.team.size > 1 else line)

    def finish(self, label: str) -> dict[str, Any] | None:
        """Sums up, once all processes are here. Raises ValueError where an image was broken."""
        if self.team.size > 1:
            self.say(str(self.done))
        every: list[Done] = self.team.listed(self.done)
        total = Done(
            [row for one in every for row in one.rows],
            sum(one.skipped for one in every),
            {name: fault for one in every for name, fault in one.broken.items()},
        )
        result = None
        if self.team.leads:
            print(f"{total}, {label}; in {self.args.out}")
            result = {
                "model": self.args.model, "backend": label, "class_names": self.target.classes, "images": total.rows,
                "skipped": total.skipped, "broken": total.broken,
            }  # fmt: skip
            if total.broken and self.args.json is not None:
                write_json(self.args.json, result)
        self.team.wait()  # torchrun ends all processes with the first that fails
        if total.broken:
            raise ValueError(f"{_images(len(total.broken))} not segmented, see above; all others were")
        return result


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"


def _explained(error: Exception) -> str:
    return one_line(error) + ("; --max-pixels allows more" if isinstance(error, TooLargeError) else "")
