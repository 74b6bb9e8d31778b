"""Checkpoints of the published implementation (SPEC, "Checkpoints")."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork

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


def our_name(official: str) -> str | None:
    """Published parameter name -> ours; None for buffers that stand in for a fixed gate, and for anything else."""
    for theirs, ours in _PREFIXES.items():
        if official.startswith(theirs):
            name = ours + official[len(theirs) :]
            for part, replacement in _NODE_PARTS:
                name = name.replace(part, replacement)
            return None if name.endswith(_FIXED_GATE) else name
    return None


def official_names(net: DynamicNetwork) -> dict[str, str]:
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


def _read(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """State dict of a path or mapping: under "model" or bare, "module." stripped, tensors only."""
    label = "state dict"
    if isinstance(source, (str, Path)):
        label = str(source)
        if not Path(source).is_file():
            raise ValueError(f"{label}: no such checkpoint file")
        try:
            source = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{label}: not a torch checkpoint: {str(error).splitlines()[0]}") from None
    state = source.get("model", source) if isinstance(source, Mapping) else None
    if not isinstance(state, Mapping):
        raise ValueError(f"{label}: wanted a state dict, bare or under 'model', got {type(state).__name__}")
    tensors = {k.removeprefix("module."): torch.as_tensor(v) for k, v in state.items() if not isinstance(v, dict)}
    if "backbone.stem.stem_1.weight" not in tensors:
        raise ValueError(f"{label}: not a checkpoint of the published implementation (no backbone.stem.stem_1.weight)")
    return tensors


def load_official(source: str | Path | Mapping[str, Any], small_gate: bool = False) -> DynamicNetwork:
    """Loads a published checkpoint; layers, channels, classes and stem width come from the shapes.

    Args:
        source: a torch file or a state dict.
        small_gate: whether the gates read a quarter-size input; the checkpoint does not say.

    Returns: the network, in evaluation mode; `gate_weights_beta` buffers mean gate="fixed".

    Raises:
        ValueError: not such a checkpoint, or parameters missing or left over.
    """
    state = _read(source)
    layers = 1 + max(int(m[1]) for k in state if (m := re.match(r"backbone\.all_cell_list\.(\d+)\.", k)))
    fixed = any(k.endswith(_FIXED_GATE) for k in state)
    config = NetworkConfig(
        layers=layers,
        channels=state["backbone.stem.stem_3.1.weight"].shape[0],
        num_classes=state["sem_seg_head.predictor.weight"].shape[0],
        stem_width=state["backbone.stem.stem_1.weight"].shape[0],
        gate="fixed" if fixed else "tanh",
        small_gate=small_gate,
    )
    net = DynamicNetwork(config)
    ours = {name: value for k, value in state.items() if (name := our_name(k)) is not None}
    missing = sorted(set(net.state_dict()) - set(ours))
    # whatever is not the network's (pixel mean, optimiser entries) has another prefix and was dropped above
    extra = sorted(set(ours) - set(net.state_dict()))
    if missing or extra:
        raise ValueError(
            f"checkpoint: {len(missing)} parameters missing {missing[:2]}, {len(extra)} unknown {extra[:2]}"
        )
    net.load_state_dict(ours)
    return net.eval()
