"""Tar files that are read in place, member by member in any order, through an index that is made once; and written."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, BinaryIO, Literal, cast

from dynroute.data.images import say_once
from dynroute.data.source import DataError
from dynroute.files import cache_file, named, write_whole

# Files that a process keeps open: closing and opening would end what the system has begun to read ahead.
_OPEN = 64
_BLOCK = 512
_BUFFER = 1 << 16
_FORMAT = 1
_MISSING = "{name}: wanted the package webdataset: pip install 'dynroute[shards]'"


@dataclass(frozen=True)
class Tar:
    """A tar as it was when it was indexed: its size in bytes, and when it was last changed, in ns."""

    path: Path
    size: int
    changed: int


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar, where it lies: read as a path is (`dynroute.data.source.File`).

    Attributes:
        tar: what it lies in.
        entry: its name there, such as `a/000123.mask.png`.
        offset, size: of its bytes.
    """

    tar: Tar
    entry: str
    offset: int
    size: int

    @property
    def key(self) -> str:
        """What the files of one sample share: all up to the first dot of the name, with the folder."""
        folder, slash, name = self.entry.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def extension(self) -> str:
        """What stands behind the key, in small letters, without the dot: `jpg`, `mask.png`."""
        return self.name.partition(".")[2].lower()

    @property
    def name(self) -> str:
        return self.entry.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.entry).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.entry).suffix

    def __str__(self) -> str:
        return f"{self.tar.path}: {self.entry}"

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """A stream of its bytes, which reads what is asked for. Raises OSError."""
        return cast(BinaryIO, io.BufferedReader(_Window(_handle(self.tar), self.offset, self.size), _BUFFER))

    def read_bytes(self) -> bytes:
        """All its bytes. Raises OSError, and DataError where the tar has become shorter."""
        found = os.pread(_handle(self.tar).number, self.size, self.offset)
        if len(found) != self.size:
            # a signal or a network file system may cut a read short
            with self.open() as stream:
                found = stream.read()
        if len(found) != self.size:
            raise DataError(f"{self}: {len(found)} bytes are there, wanted {self.size}: changed since it was indexed")
        return found


class _Handle:
    """An open tar; whoever still reads from one that is no longer kept has it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if hasattr(os, "posix_fadvise"):
            # Samples are read in mixed order, but all of a shard about the same time: ask for it in one piece.
            with suppress(OSError):
                os.posix_fadvise(self.number, 0, 0, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN)
def _handle(tar: Tar) -> _Handle:
    return _Handle(tar.path)


class _Window(io.RawIOBase):
    """Some bytes of an open file as a file; its position is its own, so threads and forked processes may share that."""

    def __init__(self, handle: _Handle, offset: int, size: int) -> None:
        self._handle, self._offset, self._size, self._at = handle, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"negative seek position {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        found = os.pread(self._handle.number, wanted, self._offset + self._at)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


@dataclass
class Index:
    """What lies in a tar.

    Attributes:
        tar: the file.
        members: its files, in their order.
        links: names of members that point to others instead of having bytes.
        values: of masks that were counted, by name, the pixels of each stored value; `save` keeps them.
    """

    tar: Tar
    members: list[Member] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    values: dict[str, dict[int, int]] = field(default_factory=dict)

    def save(self) -> None:
        """Keep it in the cache folder; where that cannot be written, it is made again the next time."""
        plain = {
            "format": _FORMAT,
            "tar": [str(self.tar.path.resolve()), self.tar.size, self.tar.changed],
            "members": [[member.entry, member.offset, member.size] for member in self.members],
            "links": self.links,
            "values": {name: list(counts.items()) for name, counts in self.values.items()},
        }
        try:
            write_whole(_kept(self.tar.path), json.dumps(plain, separators=(",", ":")))
        except OSError as error:
            say_once(f"{error.filename}: the index of shards is not kept ({error.strerror})")


def read_index(path: Path) -> Index:
    """The index of a tar: the one in the cache folder where the tar still has its size and time, else made and kept.

    Raises:
        DataError: not a tar, compressed, truncated, two members of one name, a name that leads out of its folder.
        OSError: it cannot be read.
    """
    status = path.stat()
    tar = Tar(path, status.st_size, status.st_mtime_ns)
    found = _load(tar)
    if found is None:
        found = _scan(tar)
        found.save()
    return found


def _kept(path: Path) -> Path:
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    return cache_file("shards") / f"{name}.json"


def _load(tar: Tar) -> Index | None:
    try:
        plain = json.loads(_kept(tar.path).read_bytes())
        if plain["format"] != _FORMAT or plain["tar"] != [str(tar.path.resolve()), tar.size, tar.changed]:
            return None
        return Index(
            tar,
            [Member(tar, str(entry), int(offset), int(size)) for entry, offset, size in plain["members"]],
            [str(name) for name in plain["links"]],
            {name: {int(value): int(count) for value, count in counts} for name, counts in plain["values"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or one that somebody cut or edited


def _scan(tar: Tar) -> Index:
    """Reads the headers of all members."""
    found = Index(tar)
    names: set[str] = set()
    with tar.path.open("rb") as stream:
        magic = stream.read(6)
        if magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
            raise DataError(f"{tar.path}: compressed, wanted a plain tar: its members are read where they lie")
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for info in archive:
                    if info.isdir():
                        continue
                    entry = _entry(tar.path, info.name)
                    if entry in names:
                        raise DataError(f"{tar.path}: {entry}: two members of this name, wanted one")
                    names.add(entry)
                    if info.isreg() and not info.issparse():
                        found.members.append(Member(tar, entry, info.offset_data, info.size))
                    else:
                        found.links.append(entry)
                end = archive.offset
        except DataError:
            raise
        except Exception as error:  # a broken file ends the parser in whatever it happens to meet
            raise DataError(f"{tar.path}: not a readable tar ({' '.join(str(error).split())})") from None
        # A header that makes no sense, or none at all, ends tarfile's reading without a word.
        stream.seek(end)
        block = stream.read(_BLOCK)
    if block != bytes(_BLOCK):
        what = "a broken header" if len(block) == _BLOCK else "no end of the archive: truncated?"
        raise DataError(f"{tar.path}: {what} at byte {end}, behind {len(found.members)} members")
    return found


def _entry(path: Path, name: str) -> str:
    """A member's name without `./` before it. Raises DataError."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise DataError(f"{path}: {name!r}: a name that leads out of its folder, wanted one such as 000123.jpg")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{path}: {name!r}: a name that is not UTF-8") from None
    return "/".join(parts)


class TarWriter:
    """A new shard, as the package webdataset writes it; it bears its name only when it is whole, on the disk.

    `with TarWriter(path) as out: out.add("000123", {"jpg": content, "mask.png": mask})`. The same samples give the same
    bytes: members have no owner and no date. What was there before is replaced; an error inside leaves it as it was.

    Raises:
        ImportError: webdataset is not there.
        OSError: it cannot be written; its name is in it.
    """

    def __init__(self, path: Path) -> None:
        try:
            from webdataset import TarWriter as Writer
        except ImportError:
            raise ImportError(_MISSING.format(name=path.name)) from None
        self.path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with named(path):
            self._stream = self._partial.open("wb")
        # GNU's format takes names of any length; USTAR stops at 100 letters
        self._tar = Writer(self._stream, encoder=False, user="", group="", mode=0o644, mtime=0, format="GNU_FORMAT")

    def add(self, key: str, files: dict[str, bytes]) -> int:
        """A sample: its files by their extensions, written in the extensions' order. Returns their bytes."""
        with named(self.path):
            return self._tar.write({"__key__": key, **files})

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with named(self.path), self._stream:
                self._tar.close()  # after an error too: what is left open writes when it is collected
                self._stream.flush()
                os.fsync(self._stream.fileno())
            if kind is None:
                os.replace(self._partial, self.path)
        except OSError:
            if kind is None:
                raise
        finally:
            self._partial.unlink(missing_ok=True)
