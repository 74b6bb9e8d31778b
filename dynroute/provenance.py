"""Where a result came from: versions, machine, command line and commit, for every JSON file that is written."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from dynroute.version import __version__


def provenance(seed: int | None = None) -> dict[str, Any]:
    """What is needed to run something again; JSON-able.

    Keys: `seed`, `versions` (python, torch, dynroute), `machine` (cpu, cores, threads, gpu), `command`, `commit` (what
    the variable DYNROUTE_COMMIT says; else of the git checkout, with a `+` where tracked files were changed; or None).
    """
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "dynroute": __version__},
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "command": _command(),
        "commit": _commit(),
    }


def _command() -> list[str]:
    """The command line, without folders that only this machine has."""
    program = Path(sys.argv[0])
    arguments = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    if program.name != "__main__.py":
        return [program.name, *arguments]
    folder = program.parent
    package: list[str] = []
    while (folder / "__init__.py").exists():
        folder, package = folder.parent, [folder.name, *package]
    return ["python -m " + ".".join(package), *arguments]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    if said := os.environ.get("DYNROUTE_COMMIT"):
        return said
    folder = Path(__file__).resolve().parent
    # Asked of the package's own folder, not the working directory; an installed copy may lie in some other repository.
    head = _git(folder, "rev-parse", "HEAD")
    if not head or not _git(folder, "ls-files", Path(__file__).name):
        return None
    return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
