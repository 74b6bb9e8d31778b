"""Networks from weights that lie somewhere, as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork
from dynroute.models.weights import Weights, read_weights


def from_pretrained(source: str | Path, **fields: Any) -> DynamicNetwork:
    """Loads a trained network, in evaluation mode, with its `preprocess`.

    Args:
        source: a run's folder, one that `save_pretrained` wrote, or a file, see `read_weights`.
        fields: of `NetworkConfig`, where the source does not say: a file of weights alone tells neither `small_gate`
            nor `drop_prob`, and of a `gate` only whether there is any.

    Raises:
        ValueError: a file is missing, unreadable, or does not fit; a field is another than the source's. The message
            names it.
    """
    return _network(read_weights(source), fields)


def load_official(source: str | Path | Mapping[str, Any], small_gate: bool = False) -> DynamicNetwork:
    """Loads a published checkpoint; layers, channels (of images too), classes and stem width come from the shapes.

    Args:
        source: a file or a state dict, see `read_weights`.
        small_gate: whether the gates read a quarter-size input; the checkpoint does not say.

    Returns: the network, in evaluation mode; `gate_weights_beta` buffers mean gate="fixed".

    Raises:
        ValueError: not such a checkpoint, or parameters missing or left over.
    """
    weights = read_weights(source)
    if not weights.published:
        raise ValueError(
            f"{weights.label}: not a checkpoint of the published implementation (no backbone.stem.stem_1.weight); "
            "dynroute.from_pretrained reads others"
        )
    return _network(weights, {"small_gate": small_gate})


def _network(weights: Weights, fields: Mapping[str, Any]) -> DynamicNetwork:
    """All of the weights in a network of theirs. Raises ValueError."""
    for name, value in fields.items():
        if name in weights.fields and weights.fields[name] != value:
            raise ValueError(f"{weights.label}: {name} is {weights.fields[name]!r} there, got {value!r}")
    try:
        net = DynamicNetwork(NetworkConfig(**{**weights.fields, **fields}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{weights.label}: {error}") from None
    own = net.state_dict()
    # counts of batches, which nothing reads, are missing where another framework wrote the file
    missing = sorted(own.keys() - weights.state.keys() - {n for n in own if n.endswith("num_batches_tracked")})
    extra = sorted(weights.state.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            f"{weights.label}: does not fit its network: {len(missing)} parameters missing {missing[:2]}, {len(extra)} "
            f"unknown {extra[:2]}"
        )
    for name, value in own.items():
        there = weights.state.get(name, value).shape
        if there != value.shape:
            raise ValueError(
                f"{weights.label}: does not fit {'config.json' if weights.whole else 'its network'}: {name} is "
                f"{list(there)}, wanted {list(value.shape)}"
            )
    net.load_state_dict(weights.state, strict=False)
    net.preprocess = weights.preprocess
    return net.eval()
