"""Fixed networks in the routing space, as forced gates (SPEC, "Fixed networks in the same space")."""

from __future__ import annotations

import torch
from torch import Tensor

from dynroute.space.wiring import DOWN, KEEP, SCALES, UP, build_space, nodes_in_row, path_exists

AUTO_DEEPLAB_SCALES = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)
_STEP_PATH = {-1: UP, 0: KEEP, 1: DOWN}


def list_fixed() -> list[str]:
    """Names that `fixed` knows."""
    return list(_FIXED)


def fixed(name: str, layers: int = 16) -> Tensor:
    """bool [L+1,4,3] of the paths that are open; row 0 is the init cell, paths in the order up, keep, down.

    Use as `net(images, gates=fixed("unet", layers=16).float())`.

    Raises:
        ValueError: unknown name, or too few layers for it.
    """
    if name not in _FIXED:
        raise ValueError(f"routes.fixed: wanted one of {', '.join(_FIXED)}, got {name!r}")
    build_space(layers)  # complains of fewer than 4 layers
    return _FIXED[name](layers)


def common(open_probability: Tensor, threshold: float = 0.5) -> Tensor:
    """Paths open in more than `threshold` of a data set's routes (Common-A/B/C): [L+1,4,3] -> bool."""
    return open_probability > threshold


def single_path(scales: list[int]) -> Tensor:
    """One path through the scales of grid layers 0..L-1, entered from the init cell at scale 0.

    Raises:
        ValueError: two neighbours more than one scale apart, or a scale before it exists.
    """
    layers = len(scales)
    route = torch.zeros(layers + 1, SCALES, 3, dtype=torch.bool)
    here = 0
    for row, there in enumerate([*scales, scales[-1]]):
        missing = there >= nodes_in_row(row + 1)
        if there - here not in _STEP_PATH or missing:
            raise ValueError(f"routes: layer {row} at scale {there} cannot be reached from scale {here}")
        route[row, here, _STEP_PATH[there - here]] = True
        here = there
    return route & path_exists(layers)


def _all_open(layers: int) -> Tensor:
    return path_exists(layers).clone()


def _straight_down(to: int, layers: int) -> Tensor:
    return single_path([min(l + 1, to) for l in range(layers)])


def _unet(layers: int) -> Tensor:
    if layers < 6:
        raise ValueError(f"routes.fixed('unet'): wanted at least 6 layers (three down, three up), got {layers}")
    # three layers down, the middle at 1/32, three up into the last layer at 1/4
    spine = [min(l + 1, 3) for l in range(layers - 3)] + [2, 1, 0]
    route = single_path(spine)
    for scale in range(3):  # what is left behind waits until the way up joins it
        route[scale : layers - scale, scale, KEEP] = True
    return route


def _hrnet(layers: int) -> Tensor:
    exists = path_exists(layers)
    route = torch.zeros_like(exists)
    route[..., KEEP] = exists[..., KEEP]
    for row in (0, 1, 2, layers - 1):  # where a scale is added, and at the end
        route[row] = exists[row]
    return route


def _auto_deeplab(layers: int) -> Tensor:
    published = len(AUTO_DEEPLAB_SCALES)
    if layers < published:
        raise ValueError(f"routes.fixed('auto_deeplab'): wanted at least {published} layers, got {layers}")
    return single_path([AUTO_DEEPLAB_SCALES[l * published // layers] for l in range(layers)])


_FIXED = {
    "all_open": _all_open,
    "fcn32s": lambda layers: _straight_down(3, layers),
    "deeplabv3": lambda layers: _straight_down(2, layers),
    "unet": _unet,
    "hrnetv2": _hrnet,
    "auto_deeplab": _auto_deeplab,
}
