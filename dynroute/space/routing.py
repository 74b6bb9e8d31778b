"""The rules of routing: what closes a node and a path, and which nodes of the next row are present (SPEC, "Node").

csrc/contract/routing.h says the same for the kernels; `dynroute.runtime.reference` keeps a version of its own, sample
by sample, that tests compare with.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, UP, path_exists


def is_closed(alphas: Tensor) -> Tensor:
    """alphas [...,3], 0 where no path is -> bool [...]: the sample's cell and paths are not computed.

    NaN closes nothing, here and in `is_path_open`: it goes on to the logits, where it is seen.
    """
    return alphas.sum(-1) < CLOSED_BELOW


def is_path_open(alphas: Tensor) -> Tensor:
    """alphas, any shape -> bool of that shape; of an open node."""
    return ~(alphas <= CLOSED_BELOW)


def arrivals(is_open: Tensor, present: Tensor, exists: Tensor) -> Tensor:
    """Which nodes of the next row are present.

    Up and down lead there from a node that is open (even if that path's own alpha is 0), keep from one that is present.

    Args:
        is_open, present: bool [...,4] of this row's nodes; open ones are present.
        exists: bool [4,3] or [...,4,3]: the paths that leave them.

    Returns:
        bool [...,4].
    """
    given = torch.stack([is_open, present, is_open], -1) & exists
    after = given[..., KEEP].clone()
    after[..., :-1] |= given[..., 1:, UP]
    after[..., 1:] |= given[..., :-1, DOWN]
    return after


def node_states(gates: Tensor) -> tuple[Tensor, Tensor]:
    """gates [...,L+1,4,3] of samples -> bool [...,L+1,4] open, and present."""
    exists = path_exists(gates.shape[-3] - 1).to(gates.device)
    opened = ~is_closed(gates)
    present = torch.zeros_like(opened)
    present[..., 0, 0] = True
    for row in range(1, gates.shape[-3]):
        before = present[..., row - 1, :]
        present[..., row, :] = arrivals(opened[..., row - 1, :] & before, before, exists[row - 1])
    return opened & present, present
