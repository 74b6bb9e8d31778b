"""What defines a network, and what follows from that alone: the size it pads to, its costs."""

from __future__ import annotations

from dataclasses import dataclass

from dynroute.cost.tables import CostTables, cost_tables
from dynroute.models.cell import CELL_OPS, cell_macs
from dynroute.models.gate import ACTIVATIONS
from dynroute.space.wiring import SCALES, padded_size


@dataclass(frozen=True)
class NetworkConfig:
    """What defines a network; saved as `config.json` beside its weights.

    Attributes:
        layers: L >= 4.
        channels: C at 1/4 scale, a multiple of 8.
        num_classes: K.
        gate: "tanh", "sigmoid", "softmax" or "fixed".
        small_gate: gates read a quarter-size input.
        stem_width: channels inside the stem.
        cell: names from `dynroute.models.cell.CELL_OPS`, summed.
        drop_prob: scheduled drop path's final probability at the last layer.
        in_channels: of the images; a folder saved without it has 3.
    """

    layers: int = 16
    channels: int = 64
    num_classes: int = 19
    gate: str = "tanh"
    small_gate: bool = False
    stem_width: int = 64
    cell: tuple[str, ...] = ("sepconv",)
    drop_prob: float = 0.0
    in_channels: int = 3

    def __post_init__(self) -> None:
        for name, ok, wanted in (
            ("layers", self.layers >= 4, "at least 4"),
            ("channels", self.channels >= 8 and self.channels % 8 == 0, "a positive multiple of 8"),
            ("num_classes", 1 <= self.num_classes <= 255, "1 to 255 (labels are bytes, 255 is ignored)"),
            ("gate", self.gate in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
            ("stem_width", self.stem_width >= 8 and self.stem_width % 8 == 0, "a positive multiple of 8"),
            ("cell", bool(self.cell) and all(c in CELL_OPS for c in self.cell), f"names from {', '.join(CELL_OPS)}"),
            ("drop_prob", 0.0 <= self.drop_prob < 1.0, "0 <= drop_prob < 1"),
            ("in_channels", self.in_channels >= 1, "at least 1"),
        ):
            if not ok:
                raise ValueError(f"{name}: wanted {wanted}, got {getattr(self, name)!r}")

    def costs(self, height: int, width: int, *, published_decoder: bool = False) -> CostTables:
        """Cost tables at an input of height x width pixels (padded here as the network pads)."""
        h, w = padded_size(height, width, self.small_gate)
        cells = [cell_macs(self.channels << s, self.cell, h >> (s + 2), w >> (s + 2)) for s in range(SCALES)]
        return cost_tables(
            self.layers, self.channels, self.num_classes, h, w, tuple(cells), small_gate=self.small_gate,
            fixed_gates=self.gate == "fixed", stem_width=self.stem_width, published_decoder=published_decoder,
            in_channels=self.in_channels,
        )  # fmt: skip
