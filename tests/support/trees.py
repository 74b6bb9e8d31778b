"""Arguments and results of operators as trees: tensors in lists in tuples, None where something is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def leaves(values: Any) -> list[Tensor]:
    """The tensors, in order."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def copies(values: Any, trains: bool = False) -> Any:
    """The same tree of tensors of its own, with gradients or without."""
    return tree_map_only(Tensor, lambda value: value.clone().requires_grad_(trains), values)


def to(values: Any, where: torch.dtype | str) -> Any:
    """The same tree on a device, or of a type: masks and numbers of samples keep theirs."""

    def moved(value: Tensor) -> Tensor:
        keeps = isinstance(where, torch.dtype) and not value.is_floating_point()
        return value if keeps else value.to(where)

    return tree_map_only(Tensor, moved, values)
