"""The whole network as one operator: no Python between layers."""

from __future__ import annotations

import torch
from torch import Tensor

from dynroute.native import library
from dynroute.native.contract import NODE_PARTS, SAMPLE_PARTS, ConfigNumbers
from dynroute.space.wiring import PATH_NAMES, SCALES


def network_workspace(n: int, h: int, w: int, config: ConfigNumbers) -> int:
    """Floats of workspace that `network_forward` needs for images [n, in_channels, h, w]."""
    return torch.ops.dynroute.network_workspace(n, h, w, list(config))


def network_buffer(floats: int) -> Tensor:
    """float32 [floats] on the CPU, uninitialised, in large pages where the system grants them."""
    return torch.ops.dynroute.network_buffer(floats)


def network_forward(
    images: Tensor,
    weights: Tensor,
    table: Tensor,
    config: ConfigNumbers,
    gates: Tensor | None,
    workspace: Tensor,
    logits: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the network; closed cells and paths are not computed, for each sample by itself.

    Args:
        images: float32 [N, in_channels, H, W], contiguous, H and W multiples of 32 (at least 128 with the small gate).
        weights: float32, flat: packed weights (`dynroute.runtime.weights.layouts`) with BatchNorm folded in.
        table: int64 [table_rows(L), WeightField.TABLE_FIELDS]: offsets into weights, -1 where there is none.
        config: the network's, as numbers.
        gates: float32 [N, L+1, 4, 3] to force the alphas, in the order up, keep, down, or None. Gates are then not run.
        workspace: float32 of at least `network_workspace(...)` elements; its contents do not matter.
        logits: float32 [N, K, <= H, <= W], contiguous: written.

    Returns:
        alphas [N, L+1, 4, 3]; int64 [N, L+1, 4, 5] executed multiply-accumulates of gate,
        cell, up, keep (0) and down; int64 [N, 3] those of stem, decoder and halo.

    Raises:
        RuntimeError: a shape, dtype or number is wrong (naming the argument).
    """
    return torch.ops.dynroute.network_forward(images, weights, table, list(config), gates, workspace, logits)


def _register() -> None:
    @torch.library.register_fake("dynroute::network_forward")
    def _(images, weights, table, config, gates, workspace, logits):  # type: ignore[no-untyped-def]
        n, rows = images.shape[0], ConfigNumbers(*config).layers + 1
        return (
            images.new_empty((n, rows, SCALES, len(PATH_NAMES))),
            images.new_empty((n, rows, SCALES, len(NODE_PARTS)), dtype=torch.int64),
            images.new_empty((n, len(SAMPLE_PARTS)), dtype=torch.int64),
        )


if library.why_not_loaded() is None:
    _register()
