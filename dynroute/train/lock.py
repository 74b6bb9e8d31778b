"""One training at a time in a run's folder."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dynroute.files import write_whole
from dynroute.train.parse import ConfigError

LOCK = "lock.json"


@contextmanager
def locked(folder: Path) -> Iterator[list[str]]:
    """Inside, the run's folder, which is made if need be, is this process's: `lock.json` says whose it is.

    Yields what is to be said: of a lock whose process is dead, and that was taken over. Leaves no empty folder.

    Raises:
        ConfigError: another training is at work there, or may be, on another machine.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.folder: wanted a folder, {folder} is a file")
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path, own = folder / LOCK, _me()
    try:
        with _alone(folder):
            lines = _check(path)
            write_whole(path, json.dumps(own) + "\n")
        try:
            yield lines
        finally:
            with _alone(folder):
                if _owner(path) == own:
                    path.unlink(missing_ok=True)
    finally:
        if made:
            with suppress(OSError):
                folder.rmdir()  # which only an empty one lets happen


def _check(path: Path) -> list[str]:
    """What is to be said about the lock that is there. Raises ConfigError where it holds."""
    if not path.exists():
        return []
    owner = _owner(path)
    if owner is None:
        return [f"took over {path}, which names no process"]
    who = f"process {owner['pid']} on {owner['host']}"
    if owner["host"] != socket.gethostname():
        raise ConfigError(f"run.folder: {who} trains in {path.parent}; if it is gone, delete {path}")
    if started(owner["pid"]) in (None, owner["started"]) and _lives(owner["pid"]):
        raise ConfigError(f"run.folder: {who} trains in {path.parent}; wait for it, or choose another folder")
    return [f"took over {path}: {who} is dead"]


def _owner(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(owner["pid"]), "host": str(owner["host"]), "started": owner["started"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started(os.getpid())}


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def started(pid: int) -> str | None:
    """When a process began, as numbers are given to others later; None where the system does not tell."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return "dead" if state == "Z" else f"{boot}/{fields[18]}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process looks at the folder's lock."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
