"""What compute-sanitizer watches (`make gpu-check`): every kernel in every storage type, a graph captured and replayed.

A script, not a test: small maps, as the tools slow kernels down a hundredfold.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import random_gates, random_images, random_network

import dynroute

for settings in ({"gate_shift": -0.3}, {"small_gate": True, "channels": 16}):
    net = random_network(**settings)
    x = random_images(3, 160, 128)
    forced = random_gates(net, 3, share=0.6)
    for storage in (torch.float32, torch.float16, torch.bfloat16):
        run = dynroute.optimize(net, backend="cuda", storage=storage)
        for gates in (None, forced, None):  # the third call replays a graph
            out = run(x.cuda(), None if gates is None else gates.cuda())
        assert bool(torch.isfinite(out.logits).all())
print("ran")
