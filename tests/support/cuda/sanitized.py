"""What compute-sanitizer watches (`make gpu-check`): every kernel in every storage type, a graph recorded and replayed;
a training step with maps of every type.

A script (`python -m tests.support.cuda.sanitized`), not a test: maps are small, as the tools slow kernels down a
hundredfold. `--dry-run`: the same on the CPU's engine.
"""

import sys

import torch

import dynroute
from tests.support.networks import random_gates, random_images, random_network

DRY = "--dry-run" in sys.argv[1:]
DEVICE, BACKEND = ("cpu", "cpu") if DRY else ("cuda", "cuda")
STORAGES = (torch.float32, torch.bfloat16) if DRY else (torch.float32, torch.float16, torch.bfloat16)

for settings in ({"gate_shift": -0.3, "channels": 16}, {"small_gate": True, "channels": 16}):
    net = random_network(**settings)
    x = random_images(2, 128, 96).to(DEVICE)
    forced = random_gates(net, 2, share=0.6).to(DEVICE)
    for storage in STORAGES:
        run = dynroute.optimize(net, backend=BACKEND, storage=storage)
        for gates in (None, forced, None):  # launched, recorded, replayed
            out = run(x, gates)
        assert bool(torch.isfinite(out.logits).all())
    net.to(DEVICE).train().use_ops(BACKEND)
    labels = torch.randint(0, net.config.num_classes, (2, *x.shape[2:])).to(DEVICE)
    for maps in STORAGES:
        with torch.autocast(DEVICE, maps, enabled=maps != torch.float32):
            losses = dynroute.objective(net, x, labels, progress=0.5, budget=dynroute.Budget(0.5, 0.4))
        sum(losses.values()).backward()  # type: ignore[union-attr]
        assert all(bool(torch.isfinite(p.grad).all()) for p in net.parameters() if p.grad is not None)
print("ran")
