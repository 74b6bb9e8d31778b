"""From a data set in folders to shards."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dynroute.data.sets.folder import FolderDataset
from dynroute.data.shards import find_shards
from dynroute.data.source import DataError, File
from dynroute.data.tar import TarWriter
from dynroute.files import write_whole

# Of a tar: a header for each file, and what it is filled up with.
_HEADER = 512
_SEED = 0


@dataclass
class Packed:
    """What was written of a split: its shards, the samples in each, and the bytes of their files."""

    split: str
    shards: list[str]
    samples: list[int]
    bytes: int


def pack(
    source: FolderDataset,
    out: Path,
    shard_bytes: int,
    mixed: bool = True,
    each: Callable[[int, int], None] | None = None,
) -> Packed:
    """Writes a split as shards `out/<split>-000000.tar`, ...: of each sample `KEY.jpg`, the image's own bytes under
    whatever ending it has, and `KEY.mask.png`, a grey PNG of 8 bits with the class indices, 255 being ignored.

    KEY is the name of the image; dots in it become `_`, as a key ends at the first dot. Every sample is decoded first,
    so that what cannot be read is not packed; an error leaves no shard of this call behind. The same data set gives the
    same bytes. `out/classes.txt` gets the names of the classes, where the data set has them.

    Args:
        source: what `read` returns is packed: labels and what is ignored are then as `source` was told.
        out: a folder, made if it is missing; it must not have shards of the split.
        shard_bytes: a shard ends with the sample that reaches this size.
        mixed: samples in an order that is random, but always the same, so that each shard is a sample of the whole;
            False keeps the data set's own.
        each: called with the number of samples written and of all.

    Raises:
        DataError: a sample is broken, two have one key, labels are withheld, or there are such shards already.
        ImportError: webdataset is not there.
        OSError: something cannot be written.
    """
    split = source.split
    _refuse(source, out)
    keys = _keys(source)
    order = np.random.default_rng(_SEED).permutation(len(source)) if mixed else np.arange(len(source))
    names = "".join(f"{name}\n" for name in source.class_names) if source.named else None
    if names is not None:
        write_whole(out / "classes.txt", names)
    found, done = Packed(split, [], [], 0), 0
    try:
        while done < len(order):
            path = out / f"{split}-{len(found.shards):06d}.tar"
            size = samples = 0
            with TarWriter(path) as tar:
                while done < len(order) and (size < shard_bytes or not samples):
                    index = int(order[done])
                    image, mask = source.files(index)[0], _png(source.read(index)[1])
                    files = {image.suffix.lower().lstrip("."): image.read_bytes(), "mask.png": mask}
                    found.bytes += tar.add(keys[index], files)
                    size += sum(_HEADER + -(-len(content) // _HEADER) * _HEADER for content in files.values())
                    samples += 1
                    done += 1
                    if each is not None:
                        each(done, len(order))
            found.shards.append(str(path))
            found.samples.append(samples)
    except BaseException:
        for shard in found.shards:
            Path(shard).unlink(missing_ok=True)
        raise
    return found


def _refuse(source: FolderDataset, out: Path) -> None:
    """Raises DataError where packing would mix with other shards, or has no labels to pack."""
    if not source.labelled:
        raise DataError(f"{source.root}: split {source.split!r} has no labels to pack")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: wanted a folder, this is a file")
    try:
        there = find_shards(out, source.split) if out.is_dir() else []
    except DataError:
        there = []
    if there:
        raise DataError(f"{there[0]}: shards of the split {source.split!r} are there already, wanted another folder")
    known = out / "classes.txt"
    names = "".join(f"{name}\n" for name in source.class_names)
    if known.is_file() and known.read_text(encoding="utf-8") != names:
        raise DataError(f"{known}: names other classes than {source.root}, wanted another folder")


def _keys(source: FolderDataset) -> list[str]:
    """A key of each sample. Raises DataError."""
    keys: list[str] = []
    seen: dict[str, File] = {}
    for index in range(len(source)):
        image = source.files(index)[0]
        key = source.name(index).replace(".", "_")
        first = seen.setdefault(key, image)
        if first is not image:
            raise DataError(f"{image}: its key {key!r} is that of {first}, wanted names that differ")
        keys.append(key)
    return keys


def _png(labels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(labels).save(content, "PNG")
    return content.getvalue()
