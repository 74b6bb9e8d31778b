"""Models opened for measuring, and the work of their space."""

from __future__ import annotations

import torch

from dynroute.cost import space_macs


def test_space_macs_leaves_gates_and_the_init_cell_out() -> None:
    nodes = torch.ones(7, 4, 5, dtype=torch.int64)
    assert int(space_macs(nodes)) == 7 * 4 * 4 - 4
