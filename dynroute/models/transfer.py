"""Weights of another network taken as far as they fit: to other classes, channels of images, layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dynroute.models.network import DynamicNetwork
from dynroute.models.weights import Weights

# Of tensors of stem, init cell and grid, there or here, that have to fit: a network of which less fits is another one.
LEAST = 0.5
_SHOWN = 6  # names of a line
_BODY = ("stem.", "init.", "grid.")
_PREDICTOR = "decoder.predictor"


def transfer(net: DynamicNetwork, weights: Weights) -> list[str]:
    """Gives the network all of the weights that fit by name and shape; the others keep what they have.

    Returns: what was taken and what was not, a line each.

    Raises:
        ValueError: of stem, init cell and grid less than half fits, with the reason; nothing is taken then.
    """
    own, there = net.state_dict(), weights.state
    taken = {name: there[name] for name, value in own.items() if name in there and there[name].shape == value.shape}
    body, of_body = _body(taken), _body(own)
    if body == 0 or body < LEAST * min(of_body, _body(there)):
        raise ValueError(
            f"{weights.label}: only {body} of {of_body} tensors of stem, init cell and grid fit"
            + "".join(f"; {difference}" for difference in _differences(net, weights))
        )
    net.load_state_dict(taken, strict=False)
    lines = [f"{weights.label}: {len(taken)} of {len(own)} tensors taken"]
    others = {name for name in own if name in there and name not in taken}
    by_reason: dict[str, list[str]] = {}
    for part in _parts(others, own):
        name = next(name for name in own if name in others and f"{name}.".startswith(f"{part}."))
        by_reason.setdefault(f"{_shapes(name, there[name], own[name])}: fresh", []).append(part)
    by_reason["not there: fresh"] = _parts(own.keys() - there.keys(), own)
    by_reason["not here: left out"] = _parts(there.keys() - own.keys(), there)
    for reason, parts in by_reason.items():
        if parts:
            more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
            lines.append(f"{', '.join(parts[:_SHOWN])}{more}: {reason}")
    return lines


def _body(names: Iterable[str]) -> int:
    return sum(name.startswith(_BODY) for name in names)


def _parts(names: Iterable[str], of: Iterable[str]) -> list[str]:
    """The largest parts of the network, of whose names (`of` are all) these are all, in the order of `of`."""
    wanted, rest = set(names), set()
    for name in of:
        if name not in wanted:
            rest |= set(_prefixes(name))
    found = (next(part for part in _prefixes(name) if part not in rest) for name in of if name in wanted)
    return list(dict.fromkeys(found))


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:n]) for n in range(1, len(words) + 1)]


def _shapes(name: str, there: torch.Tensor, here: torch.Tensor) -> str:
    if name.startswith(_PREDICTOR) and there.shape[1:] == here.shape[1:]:
        return f"{len(there)} classes there, {len(here)} here"
    if name == "stem.conv.weight" and len(there) == len(here):
        return f"{there.shape[1]} channels of images there, {here.shape[1]} here"
    return f"{list(there.shape)} there, {list(here.shape)} here"


def _differences(net: DynamicNetwork, weights: Weights) -> list[str]:
    """What the networks' configurations differ in that shapes follow from."""
    shaping = ("layers", "channels", "stem_width", "cell")
    return [
        f"{field} is {weights.fields[field]!r} there, {getattr(net.config, field)!r} here"
        for field in shaping
        if field in weights.fields and weights.fields[field] != getattr(net.config, field)
    ]
