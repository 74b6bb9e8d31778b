"""What compute-sanitizer watches (`make gpu-check`): every kernel in every storage type, a graph captured and replayed.

A script (`python -m tests.support.cuda.sanitized`), not a test: maps are small, as the tools slow kernels down a
hundredfold.
"""

import torch

import dynroute
from tests.support.networks import random_gates, random_images, random_network

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
