"""Parts of a network that do not train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

PARTS = ("stem", "init", "grid", "gates", "decoder")


def freeze(net: Any, parts: Sequence[str]) -> None:
    """Decides which parameters of a `DynamicNetwork` get a gradient, and which BatchNorms `settle` leaves alone.

    Raises ValueError.
    """
    names = [name for name, _ in net.named_parameters()]
    for part in parts:
        if not any(_is_of(name, part) for name in names):
            raise ValueError(
                f"freeze: wanted parts of {', '.join(PARTS)}, or what names of parameters begin with, such as grid.3 "
                f"or decoder.predictor, got {part!r}"
            )
    frozen = {name for name in names if any(_is_of(name, part) for part in parts)}
    norms = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    kept = frozenset(norm for norm in norms if {f"{norm}.weight", f"{norm}.bias"} <= frozen)
    if net.bn == "open":
        check_nodes(net, kept)
    net.kept_norms = kept
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)


def check_nodes(net: Any, kept: frozenset[str]) -> None:
    """Raises ValueError where only some of a node's BatchNorms are kept: one operator has to compute them all."""
    of_node: dict[str, set[bool]] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and name.startswith(("init.", "grid.")) and ".gate." not in name:
            node = "init" if name.startswith("init.") else ".".join(name.split(".")[:3])
            of_node.setdefault(node, set()).add(name in kept)
    split = next((node for node, modes in of_node.items() if len(modes) > 1), None)
    if split is not None:
        raise ValueError(f"freeze: with bn 'open' a node's cell and paths freeze together, got a part of {split}")


def settle(net: Any) -> None:
    """Of a network in training mode: puts the BatchNorms that keep their statistics into evaluation mode."""
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d) and (net.bn == "frozen" or name in net.kept_norms):
            module.eval()
    for row in net.rows():
        for node in row:
            paths = [getattr(node, name) for name in ("up", "down") if hasattr(node, name)]
            for module, parts in ((node.cell, [node.cell]), (node, [node.cell, *paths])):
                norms = [m for part in parts for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
                module.one_mode = len({norm.training for norm in norms}) == 1


def _is_of(name: str, part: str) -> bool:
    return ".gate." in f".{name}" if part == "gates" else name == part or name.startswith(f"{part}.")
