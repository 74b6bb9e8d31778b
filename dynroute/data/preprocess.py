"""What a network is told about its data: how an image becomes its input, and what its classes are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dynroute.data.augment import Normalise
from dynroute.data.source import DataError


def described(normalise: Normalise, class_names: list[str]) -> dict[str, Any]:
    """As plain values, for `DynamicNetwork.preprocess` and the `preprocess.json` that it is saved as."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(normalise).items()}
    return {**values, "class_names": class_names}


def understood(values: Mapping[str, Any] | None, label: str) -> tuple[Normalise, list[str] | None]:
    """The same back: the normalisation, and the classes' names where they are given.

    Args:
        values: of a network; None: nothing says how images become its input.
        label: where the network is from, for messages.

    Raises:
        DataError: nothing says it, or what is said makes no sense.
    """
    if values is None:
        raise DataError(
            f"{label}: no preprocess.json, so nothing says how images become this network's input; put that of its "
            'training beside the weights, or one such as {"mean": [103.53, 116.28, 123.675], "std": [1, 1, 1], '
            '"order": "bgr"}'
        )
    wanted: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    names = wanted.pop("class_names", None)
    try:
        if not {"mean", "std", "order"} <= wanted.keys():
            raise ValueError(f"got {', '.join(wanted) or 'nothing'}")
        return Normalise(**wanted), None if names is None else [str(name) for name in names]
    except (ValueError, TypeError) as error:
        raise DataError(f"{label}: preprocess: wanted mean, std, order, as training writes them ({error})") from None
