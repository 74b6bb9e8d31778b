"""What a command is pointed at: pictures, folders of them, patterns and shards; each with a name for its results."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynroute.data.images import SUFFIXES, list_folder, say_once, say_passed_over
from dynroute.data.shards import is_shards, shard_images
from dynroute.data.source import File


@dataclass(frozen=True)
class Picture:
    """A picture to work on.

    Attributes:
        file: a path, or a member of a shard; its text names it.
        name: where its results lie below the folder that they go to, without a suffix: `street/0001`.
    """

    file: File
    name: str


def find_pictures(where: Sequence[str], ours: Callable[[Path], bool], rank: int = 0, size: int = 1) -> list[Picture]:
    """The pictures that these name, sorted: of `size` processes the share of the one with number `rank`.

    A picture's name is its path below the deepest folder that holds everything that is named: a folder itself, a
    pattern's part before its first wildcard, the folder that a file lies in. Folders are gone through with all folders
    in them; hidden files and folders, and results of earlier runs, are passed over, which is said once. Of shards a
    picture's name is its key.

    Args:
        where: files, folders, patterns as `glob` has them (`**` for any depth); or shards, alone, see `is_shards`.
        ours: whether a file is the result of an earlier run; asked for those that are not named themselves.

    Raises:
        ValueError: nothing there, no picture there, two that would have results of one name, or shards beside others.
    """
    shards = [text for text in where if is_shards(text)]
    if shards:
        if len(where) > 1:
            raise ValueError(f"{shards[0]}: shards, wanted alone, got {len(where)} files, folders and patterns")
        return [Picture(member, member.key) for member in shard_images(shards[0], rank, size)]
    bases: list[str] = []
    found: dict[Path, None] = {}
    for text in where:
        base, files = _named(text, ours)
        bases.append(os.path.abspath(base))
        found.update(dict.fromkeys(files))
    root = os.path.commonpath(bases)
    named: dict[str, Path] = {}
    for path in sorted(found):
        name = Path(os.path.relpath(os.path.abspath(path), root)).with_suffix("").as_posix()
        if name in named:
            raise ValueError(f"{path}: its results would overwrite those of {named[name]} (one name without suffix)")
        named[name] = path
    return [Picture(path, name) for name, path in list(named.items())[rank::size]]


def _named(text: str, ours: Callable[[Path], bool]) -> tuple[str, list[Path]]:
    """What one argument names: the folder that names start from, and the files."""
    path = Path(text)
    if path.is_dir():
        return text, _in_folder(path, ours)
    if path.exists():
        return str(path.parent), [path]
    if not glob.has_magic(text):
        raise ValueError(f"{text}: no such file or folder, wanted images, folders of images, or a pattern")
    files: list[Path] = []
    for match in map(Path, sorted(glob.glob(text, recursive=True))):
        if match.is_file() and match.suffix.lower() in SUFFIXES and not ours(match):
            files.append(match)
    if not files:
        raise ValueError(f"{text}: no image of this pattern, wanted files ending in {', '.join(SUFFIXES)}")
    parts = Path(text).parts
    fixed = next(k for k, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:fixed])), files


def _in_folder(root: Path, ours: Callable[[Path], bool]) -> list[Path]:
    files: list[Path] = []
    hidden: list[Path] = []
    others: list[Path] = []
    results: list[Path] = []
    seen: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:  # a link back up
            continue
        seen.add(real)
        listed = list_folder(folder)
        hidden += listed.hidden
        for path in listed.files:
            (results if ours(path) else files).append(path)
        for path in listed.others:
            (waiting if path.is_dir() else others).append(path)
    say_passed_over(root, hidden, others)
    if results:
        say_once(f"{root}: results of earlier runs passed over: {len(results)} (such as {results[0].name})")
    if not files:
        what = f"{len(results)} results of earlier runs and no image" if results else "no image"
        raise ValueError(f"{root}: {what} in this folder, wanted files ending in {', '.join(SUFFIXES)}")
    return files
