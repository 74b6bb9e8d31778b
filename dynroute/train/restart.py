"""Whether a run begins or goes on: as asked, or since torchrun has started its processes again."""

from __future__ import annotations

import os
import socket

from dynroute.train.checkpoint import Checkpoints
from dynroute.train.lock import started
from dynroute.train.parse import ConfigError


def job() -> str | None:
    """Which torchrun started this process: its machine, its number there, and when it began; None: none did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    agent = os.getppid()
    return f"{socket.gethostname()} {agent} {started(agent)}"


def goes_on(checkpoints: Checkpoints, choice: str) -> bool:
    """Whether a run in this folder goes on from its checkpoints, or begins.

    choice: "always" goes on; "auto" does where there is a checkpoint; "never" only where the newest was written under
    the torchrun that this process is of, which then has started it again.

    Raises:
        ConfigError: the folder holds another run.
    """
    if choice == "always":
        return True
    if not checkpoints:
        return False
    if choice == "auto" or (job() is not None and checkpoints.job() == job()):
        return True
    raise ConfigError(
        f"run.folder: {checkpoints.run} already holds a run; resume it (--resume), or choose another folder"
    )
