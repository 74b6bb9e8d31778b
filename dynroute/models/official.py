"""What the published implementation calls a network's parameters, and how it reads images (SPEC, "Checkpoints")."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

PREPROCESS: dict[str, Any] = {"mean": [103.53, 116.28, 123.675], "std": [1.0, 1.0, 1.0], "order": "bgr"}
"""Of its checkpoints, as `DynamicNetwork.preprocess` has it."""

_PREFIXES = {
    "backbone.stem.stem_1.": "stem.conv.",
    "backbone.stem.stem_2.0.": "stem.depthwise1.",
    "backbone.stem.stem_2.1.": "stem.pointwise1.",
    "backbone.stem.stem_3.0.": "stem.depthwise2.",
    "backbone.stem.stem_3.1.": "stem.pointwise2.",
    "backbone.init_layer.": "init.",
    "backbone.all_cell_list.": "grid.",
    "sem_seg_head.layer_decoder_list.": "decoder.merge.",
    "sem_seg_head.predictor.": "decoder.predictor.",
}
_NODE_PARTS = (
    ("cell_ops._ops.0.op.", "cell.ops.0."),
    ("res_up.1.", "up."),
    ("res_down.1.", "down."),
    ("gate_conv_beta.0.", "gate.conv."),
    ("gate_conv_beta.2.", "gate.fc."),
)
_FIXED_GATE = "gate_weights_beta"


def is_official(names: Iterable[str]) -> bool:
    """Whether these are, for one, the published implementation's."""
    return any(name.startswith(("backbone.", "sem_seg_head.")) for name in names)


def has_fixed_gates(names: Iterable[str]) -> bool:
    """Whether published names are of a network without gates."""
    return any(name.endswith(_FIXED_GATE) for name in names)


def our_name(official: str) -> str | None:
    """Published parameter name -> ours; None for buffers that stand in for a fixed gate, and for anything else."""
    for theirs, ours in _PREFIXES.items():
        if official.startswith(theirs):
            name = ours + official[len(theirs) :]
            for part, replacement in _NODE_PARTS:
                name = name.replace(part, replacement)
            return None if name.endswith(_FIXED_GATE) else name
    return None


def official_names(net: nn.Module) -> dict[str, str]:
    """Our state-dict names -> the published ones."""
    inverse = {ours: theirs for theirs, ours in _PREFIXES.items()}
    out = {}
    for name in net.state_dict():
        head = next(ours for ours in inverse if name.startswith(ours))
        tail = name[len(head) :]
        if head in ("init.", "grid."):
            for part, replacement in _NODE_PARTS:
                tail = re.sub(rf"(^|\.){re.escape(replacement)}", rf"\g<1>{part}", tail)
        out[name] = inverse[head] + tail
    return out
