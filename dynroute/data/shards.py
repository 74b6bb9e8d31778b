"""Shards, tars of images with or without masks, as WebDataset has them: which there are, and what they hold."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from dynroute.data import masks
from dynroute.data.images import SUFFIXES, is_hidden, read_image, say_once, say_passed_over
from dynroute.data.listing import Listing
from dynroute.data.parallel import in_threads
from dynroute.data.source import DataError, File
from dynroute.data.tar import Index, Member, Tar, read_index

NAME = "shards"
# KEY.mask.png and its like are masks, KEY.image.jpg and its like images, whatever else the sample has.
MASK_WORDS = ("mask", "masks", "seg", "segmentation", "label", "labels", "gt")
IMAGE_WORDS = ("image", "img", "input")
_NUMBERED = re.compile(r"(.*?)[-_.]?\d*\.tar$")
_WANTED = "wanted such as train-000000.tar"


def is_shards(root: str | Path) -> bool:
    """Whether this names shards: a tar, a pattern of such, or a folder with some in it or its folders, but no image."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        return folder.suffix == ".tar"
    if not any(any(_seen(folder.glob(pattern))) for pattern in ("*.tar", "*/*.tar")):
        return False
    # an archive that somebody put beside pictures does not make them shards
    return not any(path.suffix.lower() in SUFFIXES for depth in ("*", "*/*") for path in _seen(folder.glob(depth)))


def find_shards(root: str | Path, split: str | None = None) -> list[Path]:
    """The tars of a split, or all of them, sorted by their names.

    Args:
        root: a folder; or a tar; or a pattern such as `/data/{train,val}-{000000..000127}.tar` or `/data/*.tar`.
        split: a tar belongs to `train` when it is named `train-000000.tar`, `train_0.tar` or `train.tar`, or lies in a
            folder `train`.

    Raises:
        DataError: there is none, or one that a pattern names is missing.
        ImportError: a pattern has braces, and the package braceexpand is not there.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        found = sorted(_seen(folder.glob("*.tar"))) + sorted(_seen(folder.glob("*/*.tar")))
        _say_gaps(found)
    else:
        found = sorted(_expanded(str(folder)))
    own = [path for path in found if split is None or _belongs(path, split)]
    if not own:
        others = f"; there are {found[0].name} and {len(found) - 1} more" if found else ""
        name = "shard" if split is None else f"shard of the split {split!r}"
        raise DataError(f"{root}: no {name}, {_WANTED.replace('train', split or 'train')}{others}")
    return own


def list_splits(root: str | Path) -> list[str]:
    """The splits that shards belong to, by their names or else their folders; `train` first. Raises DataError."""
    names = {
        # a folder of a split may name its shards as it likes
        path.parent.name if path.parent.parent == Path(root) else _NUMBERED.sub(r"\1", path.name) or path.parent.name
        for path in find_shards(root)
    }
    return sorted(names, key=lambda name: (name != "train", name))


def folder_of(root: Path) -> Path:
    """The folder that this names, or the one that all of a pattern's tars lie below."""
    while root.suffix == ".tar" or "{" in str(root) or glob.has_magic(str(root)):
        if root.is_dir():
            break
        root = root.parent
    return root


def list_split(root: Path, split: str) -> Listing:
    """The images and masks of a split: of each key `KEY.jpg` (or png, tif, ...) and `KEY.mask.png`.

    A mask is KEY.WORD.png (or tif, bmp), with one of `MASK_WORDS`, or KEY.png beside an image of another kind. Other
    members (KEY.json, KEY.cls) are passed over.

    Args:
        root, split: see `find_shards`.

    Raises:
        DataError: no shard, or no image in any.
    """
    indices: dict[Tar, Index] = {}
    found = Listing(NAME, folder_of(root), tally=partial(_tally, indices))
    for index in _indices(found, find_shards(root, split)):
        indices[index.tar] = index
        images, own_masks = _sorted_out(found, index)
        found.add(images, own_masks, partial(_wanted_mask, index.tar))
    _hold_keys(found)
    _hold_images(found, root, found.images)
    return found


def shard_images(root: str | Path, rank: int = 0, size: int = 1) -> list[Member]:
    """The images of the shards that process `rank` of `size` takes, in the shards' order; masks are passed over.

    Where there are at least as many shards as processes each takes whole shards, so that all have about as many images;
    else each takes an equal run of the images. All processes together take every image once.

    Args:
        root: see `find_shards`; all its shards, of whatever split.
        rank, size: of the processes.

    Raises:
        DataError: no shard, one that cannot be read, an image that is a link, two of one key, or no image in any.
    """
    of_tar = []
    found = Listing(NAME, folder_of(Path(root)))
    for index in _indices(found, find_shards(root)):
        images, _ = _sorted_out(found, index)
        of_tar.append([image for _, image in images])
    everything = [image for images in of_tar for image in images]
    for first, second in _twice(everything):
        found.faults.append(f"{second}: {first} has the same key, wanted a key of its own for each image")
    _hold_images(found, root, len(everything))
    if found.faults:
        raise DataError(found.faults[0])
    say_passed_over(Path(root), found.hidden, found.others)
    if len(of_tar) < size:
        bounds = np.linspace(0, len(everything), size + 1).round().astype(int)
        return everything[bounds[rank] : bounds[rank + 1]]
    # the largest first, each to whoever has least
    loads, owner = [0] * size, {}
    for number in sorted(range(len(of_tar)), key=lambda number: (-len(of_tar[number]), number)):
        owner[number] = loads.index(min(loads))
        loads[owner[number]] += len(of_tar[number])
    return [image for number, images in enumerate(of_tar) if owner[number] == rank for image in images]


def iterate_shards(
    root: str | Path,
    rank: int = 0,
    size: int = 1,
    done: Callable[[str], bool] | None = None,
    broken: Callable[[str, DataError], None] | None = None,
    channels: int = 3,
    value_range: tuple[float, float] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Each image of `shard_images`: its key and its pixels, uint8 [H,W,channels].

    Args:
        root, rank, size: see there.
        done: says of a key that its image is not wanted; it is not read.
        broken: is told the key and the error of an image that cannot be read; without it that ends everything.
        channels, value_range: see `read_image`.

    Raises:
        DataError: see there; or an image that cannot be read.
    """
    for member in shard_images(root, rank, size):
        if done is not None and done(member.key):
            continue
        try:
            image = read_image(member, channels, value_range)
        except DataError as error:
            if broken is None:
                raise
            broken(member.key, error)
            continue
        yield member.key, image


def _wanted_mask(tar: Tar, key: str) -> str:
    return f"{tar.path}: {key}.mask.png"


def _tally(
    indices: dict[Tar, Index],
    members: Sequence[Member],
    read: Callable[..., np.ndarray] = masks.read_values,
    keep: dict[File, np.ndarray] | None = None,
) -> masks.Tally:
    """As `masks.tally`; what was counted before is in the shards' indices, and what is counted now is kept there."""

    def count(own: list[Member]) -> list[dict[int, int]]:
        index = indices[own[0].tar]
        fresh = False
        for member in own:
            if keep is not None or member.entry not in index.values:
                values = read(member)
                fresh |= member.entry not in index.values
                index.values[member.entry] = masks.count_values(values)
                if keep is not None:
                    keep[member] = values
        if fresh:
            index.save()
        return [index.values[member.entry] for member in own]

    found = masks.Tally()
    of_tars = [list(own) for _, own in groupby(members, key=lambda member: member.tar)]
    for own, counts in zip(of_tars, in_threads(count, of_tars, "read masks of shards")):
        for member, values in zip(own, counts):
            found.add(member, values)
    return found


def _indices(found: Listing, tars: list[Path]) -> Iterator[Index]:
    """The index of each tar, made where there is none yet, with a bar; tars that cannot be read are faults."""

    def read(path: Path) -> Index | DataError:
        try:
            return read_index(path)
        except DataError as error:
            return error

    for index in in_threads(read, tars, "index shards"):
        if isinstance(index, DataError):
            found.faults.append(str(index))
        else:
            yield index


def _hold_images(found: Listing, root: str | Path, images: int) -> None:
    """Raises DataError where there is no image at all."""
    if not images:
        raise DataError(next(iter(found.faults), f"{root}: no image in these shards, wanted members such as KEY.jpg"))


def _seen(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in paths if not is_hidden(path.name))


def _say_gaps(tars: list[Path]) -> None:
    """Say once which numbers are missing between those of a folder's shards, as after a copy that was cut short."""
    numbers: dict[tuple[str, int], dict[int, Path]] = {}
    for path in tars:
        number = re.search(r"(\d+)\.tar$", path.name)
        if number is not None:
            series = str(path)[: -len(number[0])], len(number[1])
            numbers.setdefault(series, {})[int(number[1])] = path
    for (beginning, digits), found in numbers.items():
        missing = max(found) - min(found) + 1 - len(found)
        if missing:
            first = next(number for number in range(min(found), max(found)) if number not in found)
            more = f" (and {missing - 1} more)" if missing > 1 else ""
            last = found[max(found)].name
            say_once(f"{beginning}{first:0{digits}d}.tar: no such shard{more}, but there are others up to {last}")


def _belongs(path: Path, split: str) -> bool:
    named = re.fullmatch(rf"{re.escape(split)}([-_.].*)?\.tar", path.name)
    return named is not None or path.parent.name == split


def _expanded(pattern: str) -> Iterator[Path]:
    """The tars that a pattern names. Raises DataError, ImportError."""
    names = [pattern]
    if "{" in pattern:
        try:
            from braceexpand import braceexpand
        except ImportError:
            raise ImportError(
                f"{pattern}: braces want the package braceexpand: pip install 'dynroute[shards]'"
            ) from None
        try:
            names = list(braceexpand(pattern))
        except ValueError:
            raise DataError(f"{pattern}: braces that do not close, wanted such as x-{{000000..000127}}.tar") from None
    for name in names:
        if glob.has_magic(name):
            yield from _seen(map(Path, glob.glob(name)))
        elif not Path(name).is_file():
            if name == pattern:
                raise DataError(f"{name}: no such folder or shard, {_WANTED}")
            raise DataError(f"{name}: no such shard, which {pattern} names")
        else:
            yield Path(name)


def _sorted_out(found: Listing, index: Index) -> tuple[list[tuple[str, Member]], list[tuple[str, Member]]]:
    """The images and the masks of a tar with their keys, in its order; what is neither goes to `found`."""
    kinds: dict[str, list[tuple[str, Member]]] = {"image": [], "mask": []}
    for member in index.members:
        kind = _kind(member.extension)
        if is_hidden(member.name):
            found.hidden.append(member)
        elif kind is None:
            found.others.append(member)
        else:
            kinds[kind].append((member.key, member))
    found.faults += [
        f"{index.tar.path}: {name}: a link, wanted the file itself"
        for name in index.links
        if _kind(name.rpartition("/")[2].partition(".")[2].lower()) and not is_hidden(name.rpartition("/")[2])
    ]
    images, own = kinds["image"], kinds["mask"]
    # KEY.png beside one KEY.jpg is its mask, unless there is a KEY.mask.png
    masked = {key for key, _ in own}
    pairs = {key for key, count in Counter(key for key, _ in images).items() if count == 2 and key not in masked}
    beside = {key for key, member in images if key in pairs and member.extension != "png"}
    implied = [(key, member) for key, member in images if key in beside and member.extension == "png"]
    if implied:
        images = [(key, member) for key, member in images if key not in beside or member.extension != "png"]
    return images, [*own, *implied]


def _kind(extension: str) -> str | None:
    """Whether a member is an `image` or a `mask`, by what stands behind its key."""
    word, _, kind = extension.rpartition(".")
    if word in MASK_WORDS:
        return "mask" if f".{kind}" in masks.SUFFIXES else None
    return "image" if word in ("", *IMAGE_WORDS) and f".{kind}" in SUFFIXES else None


def _hold_keys(found: Listing) -> None:
    for first, second in _twice([image for image, _ in found.pairs]):
        found.faults.append(f"{second}: {first} has the same key, wanted a key of its own for each sample")


def _twice(images: Iterable[File]) -> Iterator[tuple[Member, Member]]:
    """Images of one key: the first, and each further."""
    seen: dict[str, Member] = {}
    for image in images:
        assert isinstance(image, Member)
        first = seen.setdefault(image.key, image)
        if first is not image:
            yield first, image
