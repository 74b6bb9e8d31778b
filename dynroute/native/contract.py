"""What Python and the native library agree on, in Python's words; csrc/contract says it for C++ and CUDA.

The library describes its own side (`read_contract`), and `differences` holds one against the other.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dynroute.space.wiring import (
    CLOSED_BELOW,
    PART_NAMES,
    PATH_NAMES,
    PUBLISHED_ORDER,
    SCALES,
    SIDE_MULTIPLE,
    SMALL_GATE_SIDE,
    path_exists,
)
from dynroute.version import __version__

ACTIVATIONS = ("tanh", "sigmoid", "softmax", "fixed")
NODE_PARTS = PART_NAMES
SAMPLE_PARTS = ("stem", "decoder", "halo")


class ConfigNumbers(NamedTuple):
    """A network's configuration as it passes to native code, in this order.

    `activation` is an index into ACTIVATIONS; `small_gate` and `bf16_storage` are 0 or 1; `cell_stacks` is 1 to 3;
    `in_channels` are the images'.
    """

    layers: int
    channels: int
    stem_width: int
    num_classes: int
    activation: int
    small_gate: int
    cell_stacks: int
    bf16_storage: int
    in_channels: int


class SampleMacs(NamedTuple):
    """int64 [N] each: multiply-accumulates of a sample besides its nodes'; `halo` is work done twice."""

    stem: Tensor
    decoder: Tensor
    halo: Tensor


class WeightField(IntEnum):
    """Fields of a row of the weight table.  A convolution's weight is followed by its shift.

    A stage is DEPTHWISE, POINTWISE, SHIFT; those of a cell begin at CELL_STAGES, the stem's at STEM_STAGES.
    """

    DEPTHWISE = 0
    POINTWISE = 1
    SHIFT = 2
    STAGE_FIELDS = 3
    CELL_STAGES = 0
    UP_CONV = 9
    DOWN_CONV = 11
    GATE_CONV = 13
    GATE_FC = 15
    STEM_CONV = 0
    STEM_STAGES = 2
    ONLY_CONV = 0
    TABLE_FIELDS = 17


def node_row(row: int, scale: int) -> int:
    """Row of the weight table that holds the node at this row of the space and scale."""
    return row * SCALES + scale


def stem_row(layers: int) -> int:
    """Row of the weight table that holds the stem."""
    return (layers + 1) * SCALES


def merge_row(layers: int, scale: int) -> int:
    """Row of the weight table that holds the decoder's merge of a scale."""
    return stem_row(layers) + 1 + scale


def predictor_row(layers: int) -> int:
    """Row of the weight table that holds the predictor."""
    return merge_row(layers, SCALES)


def table_rows(layers: int) -> int:
    """Rows of the weight table: 4 per layer (the init cell counts as one), stem, 4 decoder merges, predictor."""
    return predictor_row(layers) + 1


def read_contract() -> dict[str, Any]:
    """What the loaded library says of its side. Raises AttributeError where it says nothing, as an old one does."""
    return json.loads(torch.ops.dynroute.contract())


def own_contract() -> dict[str, Any]:
    """The same of Python's side; tables and sizes by the same example: 16 layers, images of 512 x 1024."""
    layers = 16
    rows = {"stem": stem_row(layers), "merge": merge_row(layers, 0), "predictor": predictor_row(layers)}
    exists = path_exists(layers).flatten().int().tolist()
    return {
        "version": __version__,
        "scales": SCALES,
        "paths": list(PATH_NAMES),
        "published_order": [PATH_NAMES[path] for path in PUBLISHED_ORDER],
        "activations": list(ACTIVATIONS),
        "threshold": CLOSED_BELOW,
        "node_parts": list(NODE_PARTS),
        "sample_parts": list(SAMPLE_PARTS),
        "config": list(ConfigNumbers._fields),
        "weight_fields": {name.lower(): int(field) for name, field in WeightField.__members__.items()},
        "table": {**rows, "rows": table_rows(layers)},
        "path_exists": "".join(map(str, exists)),
        "smallest_sides": [SIDE_MULTIPLE, SMALL_GATE_SIDE],
        "side_multiple": SIDE_MULTIPLE,
        "stem_sides": [(side - 3) // 2 + 1 for side in (512, 1024)],
    }


def differences(described: dict[str, Any]) -> list[str]:
    """A line for each thing that a library describes in another way than Python; none where they agree."""
    own = own_contract()
    return [
        f"{key}: the library says {described.get(key)!r}, Python {own.get(key)!r}"
        for key in sorted({*own, *described})
        if described.get(key) != own.get(key)
    ]
