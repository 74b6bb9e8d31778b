"""The operators of dynamic routing. Each has a plain PyTorch formula in `dynroute.ops.reference`."""

from dynroute.native.network import network_forward, network_workspace
from dynroute.ops.aggregate import aggregate
from dynroute.ops.gate import gate
from dynroute.ops.gate_train import gate_train
from dynroute.ops.node_train import NodeOutput, node_train
from dynroute.ops.route import Routes, route
from dynroute.ops.sepconv import sepconv
from dynroute.ops.sepconv_train import sepconv_train
from dynroute.ops.transform import transform
from dynroute.ops.transform_train import transform_train
from dynroute.ops.upsampled_cross_entropy import upsampled_cross_entropy

__all__ = [
    "NodeOutput",
    "Routes",
    "aggregate",
    "gate",
    "gate_train",
    "network_forward",
    "network_workspace",
    "node_train",
    "route",
    "sepconv",
    "sepconv_train",
    "transform",
    "transform_train",
    "upsampled_cross_entropy",
]
