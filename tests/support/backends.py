"""What the runtime's tests run on: the backends that every machine has, and shapes of networks."""

from __future__ import annotations

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
]
