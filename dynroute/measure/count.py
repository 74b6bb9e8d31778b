"""Multiply-accumulates of a network at image sizes or on images: expected, real, executed, and all open."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dynroute.cost import space_macs
from dynroute.measure.opened import Model


@dataclass(frozen=True)
class Costs:
    """Millions of multiply-accumulates: the paper's expected cost of the space and real cost; executed, in all and in
    the space."""

    expected_mflops: float
    real_mflops: float
    executed_mmacs: float
    executed_space_mmacs: float


@dataclass(frozen=True)
class Counted:
    """One image.

    Attributes:
        name: its file, or its size in words.
        size: height and width in pixels.
        costs, dense: with the gates given or its own, and with everything open.
        halo_mmacs: work done twice, millions.
        parts: the paper's cost of gates, stem and decoder, which real always has.
        nodes: executed multiply-accumulates, float64 [L+1,4,5].
    """

    name: str
    size: tuple[int, int]
    costs: Costs
    dense: Costs
    halo_mmacs: float
    parts: dict[str, float]
    nodes: Tensor


def count(
    model: Model, images: Iterable[tuple[str, Tensor]], gates: Tensor | None, published_decoder: bool = False
) -> list[Counted]:
    """Runs each image and counts.

    Args:
        model: with a runtime.
        images: names, and images [1,3,H,W].
        gates: alphas [L+1,4,3] to force, or None for the network's own.
        published_decoder: count the paper's decoder with its height for its width, as the published code does.
    """
    found = []
    for name, image in images:
        height, width = image.shape[-2:]
        tables = model.net.costs(height, width, published_decoder=published_decoder)
        out = model(image, gates=gates)
        full = model.all_open_work(height, width)
        assert full is not None
        found.append(
            Counted(
                name=name,
                size=(height, width),
                costs=Costs(
                    float(tables.expected(out.gates.double())[0]),
                    float(tables.real(out.gates)[0]),
                    int(out.executed_macs[0]) / 1e6,
                    int(space_macs(out.executed_nodes)[0]) / 1e6,
                ),
                dense=Costs(tables.all_open, tables.all_open_real, full[0] / 1e6, int(space_macs(full[1])) / 1e6),
                halo_mmacs=int(out.halo_macs[0]) / 1e6,
                parts={"gates": float(tables.gate.sum()), "stem": tables.stem, "decoder": tables.decoder},
                nodes=out.executed_nodes[0].double().cpu(),
            )
        )
    return found


def mean_nodes(counted: list[Counted]) -> Tensor:
    """float64 [L+1,4,5], millions: executed work by node, mean over images."""
    return torch.stack([one.nodes for one in counted]).mean(0) / 1e6
