"""Makes `torch.ops.dynroute_triton` known to torch: derivatives, autocast, FLOPs are the native operators'."""

from __future__ import annotations

from importlib import import_module

from dynroute.ops.registration import register

NAMESPACE = "dynroute_triton"
# Where each is made: importing makes it.
MODULES = {
    "sepconv": "sepconv",
    "transform": "transform",
    "gate": "gate",
    "route": "route",
    "aggregate": "aggregate",
    "aggregate_backward": "aggregate_backward",
    "upsampled_cross_entropy": "upsampled_cross_entropy",
    "sepconv_train": "train.chain",
    "transform_train": "train.chain",
    "node_train": "train.node",
    "gate_train": "train.gate",
}
for _module in MODULES.values():
    import_module(f"dynroute.ops.triton.{_module}")
for _op in MODULES:
    if not _op.endswith("_backward"):
        register(NAMESPACE, _op)
