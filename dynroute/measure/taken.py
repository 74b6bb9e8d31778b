"""Which routes images take: how many different ones, and which nodes no image opens."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import Tensor

from dynroute.measure.results import RouteStatistics
from dynroute.space.routing import is_path_open, node_states
from dynroute.space.wiring import build_space, path_exists


class RoutesTaken:
    """Counts routes of images, batch by batch. A route is which paths are open, whatever their alphas."""

    def __init__(self) -> None:
        self._routes: Counter[bytes] = Counter()
        self._paths = 0
        self._opened = torch.zeros(0)
        self._reached = torch.zeros(0)

    @torch.no_grad()
    def add(self, gates: Tensor) -> None:
        """gates [N,L+1,4,3] of N images (or of passes of images); what nothing reaches counts as closed, as it does
        where the network runs, though in training its gate may be open."""
        gates = gates.cpu()
        opened, present = node_states(gates)
        paths = is_path_open(gates) & opened[..., None] & path_exists(gates.shape[1] - 1)
        if not len(self._opened):
            self._opened = torch.zeros(opened.shape[1:], dtype=torch.int64)
            self._reached = torch.zeros_like(self._opened)
        self._routes.update(row.tobytes() for row in np.packbits(paths.flatten(1).numpy(), axis=1))
        self._paths += int(paths.sum())
        self._opened += opened.sum(0)
        self._reached += present.sum(0)

    def statistics(self) -> RouteStatistics | None:
        """Over all that was added; None of nothing."""
        images = self._routes.total()
        if not images:
            return None
        layers = len(self._opened) - 1
        grid = [node for row in build_space(layers)[1:] for node in row]
        never = [node for node in grid if not self._opened[node.row, node.scale]]
        shares = np.array(list(self._routes.values())) / images
        return RouteStatistics(
            images=images,
            layers=layers,
            open_nodes=sum(float(self._opened[node.row, node.scale]) for node in grid) / len(grid) / images,
            open_paths=self._paths / int(path_exists(layers).sum()) / images,
            distinct=len(self._routes),
            largest=float(shares.max()),
            entropy_bits=float(np.abs((shares * np.log2(shares)).sum())),
            closed=[(node.row - 1, 4 << node.scale) for node in never if self._reached[node.row, node.scale]],
            absent=[(node.row - 1, 4 << node.scale) for node in never if not self._reached[node.row, node.scale]],
        )
