"""Checkpoints that are either whole or not there, and from which a run goes on as if it had never stopped."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from dynroute.train.parse import ConfigError


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) so that `path` holds either the old checkpoint or the new one."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    if os.name == "posix":
        # The renaming itself is only safe once the folder is on disk.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote. Raises ConfigError when it is missing or broken."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no checkpoint to resume from") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise ConfigError(f"{path}: broken checkpoint ({str(error).strip().splitlines()[0]})") from error


def random_state(device: torch.device) -> dict[str, Any]:
    """States of torch's generators; the data stream has none (see `dynroute.data.Stream`).

    A device with a number is one of several processes', which leave the others alone.
    """
    if device.index is not None and device.type == "cuda":
        cuda = [torch.cuda.get_rng_state(device)]
    else:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0], device)
    elif state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
