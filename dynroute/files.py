"""Files that are kept between runs: where they lie, and how they are written."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cache_file(name: str) -> Path:
    """dynroute/`name` in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    # expanduser, unlike Path.home, does not fail where there is no home
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dynroute" / name


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, an OSError that names no file, as that of a full disk, is one that names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise type(error)(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_whole(path: Path, content: str | bytes | memoryview) -> None:
    """Writes a file, and the folders it lies in; at any time it is the old one or the new one, also on the disk.

    Raises:
        OSError: it cannot be written, with its name; the old one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: two that save at once must not write into one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with named(path):
            with partial.open("wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            if os.name == "posix":
                # the renaming itself is only safe once the folder is on disk
                folder = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """Plain values for JSON, which has neither NaN nor infinity: null stands for them; paths as text."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
