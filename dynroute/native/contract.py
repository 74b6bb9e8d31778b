"""What native code and Python say alike of a network (csrc/contract): numbers by their names."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ACTIVATIONS = ("tanh", "sigmoid", "softmax", "fixed")


class ConfigNumbers(NamedTuple):
    """A network's configuration as operators take it, in the order of struct NetworkConfig."""

    layers: int
    channels: int
    stem_width: int
    num_classes: int
    activation: int
    small_gate: int
    cell_stacks: int
    bf16_storage: int


class SampleMacs(NamedTuple):
    """Executed multiply-accumulates that no node has, int64 [n] each, in the order of enum SamplePart."""

    stem: Tensor
    decoder: Tensor
    halo: Tensor
