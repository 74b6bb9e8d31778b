"""Networks from a folder that `DynamicNetwork.save_pretrained` wrote: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork


def from_pretrained(folder: str | Path) -> DynamicNetwork:
    """Loads a folder written by `save_pretrained`, in evaluation mode.

    Raises:
        ValueError: a file is missing or does not fit; the message names it.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder}: wanted a folder made by save_pretrained, but {name} is missing")
    try:
        raw = json.loads((folder / "config.json").read_text())
        config = NetworkConfig(**{**raw, "cell": tuple(raw["cell"])})
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'}: not a network's configuration: {error}") from None
    net = DynamicNetwork(config)
    try:
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / 'model.safetensors'}: does not fit config.json: {first}") from None
    return net.eval()
