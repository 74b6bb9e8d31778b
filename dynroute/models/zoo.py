"""Named networks."""

from __future__ import annotations

from typing import Any

from dynroute.models.config import NetworkConfig
from dynroute.models.network import DynamicNetwork

_ZOO: dict[str, dict[str, Any]] = {
    "dynamic_raw_l16": {},
    "dynamic_a_l16": {"small_gate": True},
    "dynamic_b_l16": {"small_gate": True},
    "dynamic_c_l16": {"small_gate": True},
    "dynamic_raw_l33": {"layers": 33},
    "fix_l16": {"gate": "fixed"},
    "dynamic_tiny": {"layers": 6, "channels": 8, "stem_width": 16},
}

# lambda2 and mu that SPEC gives for each; 26300 MFLOPs is C at the training crop of 768x768.
PUBLISHED_BUDGETS: dict[str, tuple[float, float]] = {
    "dynamic_a_l16": (0.8, 0.1),
    "dynamic_b_l16": (0.5, 0.1),
    "dynamic_c_l16": (0.5, 0.2),
}


def list_models() -> list[str]:
    """Names that `create_model` knows."""
    return list(_ZOO)


def create_model(name: str = "dynamic_raw_l16", *, ops: str = "reference", **overrides: Any) -> DynamicNetwork:
    """Makes a network with fresh weights, in training mode.

    Args:
        name: one of `list_models()`.  A, B and C differ from each other only in the budget they are trained with.
        ops: the operators that train, see `DynamicNetwork.use_ops`.
        overrides: fields of `NetworkConfig`: num_classes=19, channels=64, layers=16, small_gate=False, gate="tanh",
            stem_width=64, cell=("sepconv",), drop_prob=0.0, in_channels=3.  None keeps the name's own value.

    Raises:
        ValueError: unknown name or field, or a value out of range.
    """
    if name not in _ZOO:
        raise ValueError(f"model: wanted one of {', '.join(_ZOO)}, got {name!r}")
    known = NetworkConfig.__dataclass_fields__
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ValueError(f"create_model: wanted fields from {', '.join(known)}, got {', '.join(unknown)}")
    fields = {**_ZOO[name], **{k: v for k, v in overrides.items() if v is not None}}
    if "cell" in fields:
        fields["cell"] = (fields["cell"],) if isinstance(fields["cell"], str) else tuple(fields["cell"])
    return DynamicNetwork(NetworkConfig(**fields)).use_ops(ops)
