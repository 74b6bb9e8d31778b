"""What the runtime's tests run on: the backends that every machine has, and shapes of networks."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from dynroute.native import library

BACKENDS = ["reference", "cpu"]
SHAPES = [
    {},
    {"small_gate": True},
    {"gate": "sigmoid"},
    {"gate": "softmax"},
    {"gate": "fixed"},
    {"cell": "sepconv1", "channels": 16},
    {"cell": "sepconv3", "channels": 24, "layers": 4},
    {"channels": 32, "num_classes": 19, "layers": 5},
    {"in_channels": 1, "layers": 4},
    {"in_channels": 5, "layers": 4},
]


def _why_no_triton() -> str | None:
    """Why not on a GPU: where there is none, tests have its kernels interpreted."""
    if find_spec("triton") is None:
        return "triton is not installed"
    return None if torch.cuda.is_available() else "triton: torch sees no GPU"


# For tests of a device: each backend of one, skipped where it cannot run; and torch.ops' namespace of its operators.
on_a_gpu = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
        for name, reason in (("cuda", library.why_not_cuda()), ("triton", _why_no_triton()))
    ],
)
NAMESPACE = {"cuda": "dynroute", "triton": "dynroute_triton"}
