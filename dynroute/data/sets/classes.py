"""Folders of classes, as ImageNet lies in them: `root/train/<class>/*.jpg` and `root/val/<class>/*.jpg`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from dynroute.data.images import SUFFIXES, Listed, is_hidden, list_folder, read_image, say_once, say_passed_over
from dynroute.data.layout import read_class_names
from dynroute.data.parallel import in_threads
from dynroute.data.source import DataError

TRAIN = "train"
_MOST = 1_000_000
_SHOWN = 8


@dataclass
class ClassListing:
    """The files of one split.

    Attributes:
        folder: `root/<split>`.
        names: of the classes, in the order of their indices.
        folders: of the classes, by their names in `folder`.
        counts: of the classes, how many images they have here.
        files: names of the images, class by class, sorted in each.
        said: what may not be meant; a line each.
        hidden, others: passed over: hidden files, and what is no image.
    """

    folder: Path
    names: list[str]
    folders: list[str]
    counts: list[int] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.counts)

    def label(self, index: int) -> int:
        """The class of an image. Raises IndexError."""
        if not 0 <= index < len(self.files):
            raise IndexError(index)
        return int(np.searchsorted(self._ends, index, side="right"))

    def file(self, index: int) -> Path:
        """An image's path. A million of them would take more memory than their names do."""
        return self.folder / self.folders[self.label(index)] / self.files[index]


class ImageClasses:
    """Images of one split, each with the class whose folder it lies in.

    The classes are the folders of `root/train`, sorted by their names; or, in its order, those of `root/classes.txt`,
    a line each: the folder, such as `n01440764`, and behind a space a name where it has another (`n01440764 tench,
    Tinca tinca`). What a class has none of in this split, hidden files and files that are no images are said once in
    the log.

    Args:
        root: folder that holds a folder for each split.
        split: its name, such as `train` or `val`; its folders have to be classes of `train`.
        channels: of the images, and value_range: what their values mean; see `read_image`.

    Raises:
        DataError: something is missing or malformed; one line that names the folder or file.
    """

    def __init__(
        self, root: str | Path, split: str, channels: int = 3, value_range: tuple[float, float] | None = None
    ) -> None:
        self.root, self.split = Path(root).expanduser(), split
        self._read_image = partial(read_image, channels=channels, value_range=value_range)
        listing = list_classes(self.root, split)
        say_passed_over(listing.folder, listing.hidden, listing.others)
        for line in listing.said:
            say_once(line)
        self._listing = listing

    @property
    def class_names(self) -> list[str]:
        """One name for each class, in the order of their indices; no two are the same."""
        return self._listing.names

    @property
    def class_counts(self) -> list[int]:
        """How many images of each class there are."""
        return self._listing.counts

    def __len__(self) -> int:
        return len(self._listing.files)

    def label(self, index: int) -> int:
        """The class of sample `index`."""
        return self._listing.label(index)

    def file(self, index: int) -> Path:
        """The image of sample `index`."""
        return self._listing.file(index)

    def name(self, index: int) -> str:
        """Folder and file stem of sample `index`."""
        path = self.file(index)
        return f"{path.parent.name}/{path.stem}"

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Sample `index`: image uint8 [H, W, channels], its class. Raises DataError for a broken file."""
        return self._read_image(self.file(index)), self.label(index)


def is_classes(root: str | Path) -> bool:
    """Whether there are folders of classes: `root/train/<class>/` with an image in it."""
    train = Path(root) / TRAIN
    if not train.is_dir():
        return False
    folders = (path for path in sorted(train.iterdir()) if path.is_dir() and not is_hidden(path.name))
    return any(path.suffix.lower() in SUFFIXES for folder in folders for path in folder.iterdir())


def class_splits(root: Path) -> list[str]:
    """The folders of `root` that hold folders, `train` first."""
    found = [path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name)]
    splits = [path.name for path in found if any(below.is_dir() for below in path.iterdir())]
    return sorted(splits, key=lambda name: (name != TRAIN, name))


def list_classes(root: Path, split: str) -> ClassListing:
    """The images of a split, by class. Raises DataError: see `ImageClasses`."""
    train, folder = root / TRAIN, root / split
    for path in (root, train, folder):
        if not path.is_dir():
            raise DataError(f"{path}: no such folder, wanted {root}/{split}/<class>/*.jpg, and {TRAIN}/<class>/")
    of_train = _folders(train)
    folders, names = _classes(root, of_train)
    found = ClassListing(folder, names, folders)
    there = of_train if split == TRAIN else _folders(folder)
    known = set(folders)
    strange = [name for name in there if name not in known]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise DataError(f"{folder / strange[0]}: no class of {train}{more}, wanted the folders of {train} alone")
    loose, found.hidden, found.others = list_folder(folder)
    found.others = [path for path in found.others if not path.is_dir()]
    if loose:
        raise DataError(f"{loose[0]}: an image in no class's folder, wanted {folder}/<class>/{loose[0].name}")
    present = set(there)
    listed = in_threads(lambda name: _listed(folder / name, name in present), folders, "list classes")
    for files, hidden, others in listed:
        found.counts.append(len(files))
        found.files += [path.name for path in files]
        found.hidden += hidden
        found.others += others
    if not found.files:
        raise DataError(f"{folder}: no image in its classes' folders, wanted files ending in {', '.join(SUFFIXES)}")
    empty = [name for name, count in zip(folders, found.counts) if not count]
    if empty:
        shown = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        found.said.append(f"{folder}: {len(empty)} of {len(folders)} classes have no image here: {shown}")
    return found


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted; hidden ones are none. Raises DataError."""
    found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    if not found:
        raise DataError(f"{folder}: no folder of a class in it, wanted {folder}/<class>/*.jpg")
    return found


def _listed(folder: Path, there: bool) -> Listed:
    return list_folder(folder) if there else Listed([], [], [])


def _classes(root: Path, there: Sequence[str]) -> tuple[list[str], list[str]]:
    """The classes' folders and names in order, from the folders of `train` and `classes.txt`. Raises DataError."""
    lines = read_class_names(root, _MOST)
    if lines is None:
        return list(there), list(there)
    path, known = root / "classes.txt", set(there)
    folders, names = [], []
    for line in lines:
        first, _, rest = line.partition(" ")
        # a folder's name may have a space in it
        folders.append(line if line in known or not rest.strip() else first)
        names.append(line if folders[-1] == line else rest.strip())
    twice = next((name for name, count in Counter(folders).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the folder {twice!r} twice, wanted a line for each class")
    unnamed = sorted(known - set(folders))
    if unnamed:
        more = f" (and {len(unnamed) - 1} more)" if len(unnamed) > 1 else ""
        raise DataError(f"{path}: no line for the folder {root / TRAIN / unnamed[0]}{more}, wanted one for each class")
    # two synsets may have one name: crane is a bird and a machine
    of_name = Counter(names)
    return folders, [name if of_name[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, folders)]
