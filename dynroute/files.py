"""Files that are kept between runs: where they lie, and how they are written."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def cache_file(name: str) -> Path:
    """dynroute/`name` in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    # expanduser, unlike Path.home, does not fail where there is no home
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dynroute" / name


def write_whole(path: Path, text: str) -> None:
    """Writes a file, and the folders it lies in; at any time it is the old one or the new one.

    Raises:
        OSError: it cannot be written; the old one stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # a name of its own: two that save at once must not write into one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
