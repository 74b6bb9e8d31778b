"""A training step on CUDA without a GPU, for `cuda_static.py`: ours on the emulator, beside PyTorch's operations.

Ours are counted while a step runs on the emulator: launches, bytes that threads ask for, distinct ones, instructions.
PyTorch's are computed: an operation is a launch, which reads its inputs and writes its output once. What a step saves
for its backward is what autograd was given to keep, each tensor's memory once.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

import dynroute
from benchmarks.cuda_operators import Traffic
from dynroute.models.network import DynamicNetwork
from tests.support.cuda.training import emulated_operators

SETTINGS = {"layers": 4, "channels": 16, "num_classes": 19}
SIDE, BATCH, SEED = 64, 2, 0
COUNTED = {
    "asked_load_bytes": "gld_bytes", "asked_store_bytes": "gst_bytes", "distinct_load_bytes": "gld_unique_bytes",
    "distinct_store_bytes": "gst_unique_bytes", "instructions": "instructions", "mma_macs": "mma_macs",
    "fma_macs": "fma_macs",
}  # fmt: skip


def network() -> DynamicNetwork:
    torch.manual_seed(SEED)
    net = dynroute.create_model("dynamic_raw_l16", **SETTINGS)  # type: ignore[arg-type]
    return net.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def step(net: DynamicNetwork, ops: str, autocast: bool) -> int:
    """One step; the bytes that it saves for its backward, but for the parameters'."""
    net.use_ops(ops)
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=generator).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, net.config.num_classes, (BATCH, SIDE, SIDE), generator=generator)
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    saved: dict[int, int] = {}
    kept = []  # so that no address comes twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.float16, enabled=autocast):
        losses = dynroute.objective(net, images, labels, progress=0.5)
    sum(losses.values()).backward()  # type: ignore[union-attr]
    return sum(saved.values())


def training() -> dict[str, Any]:
    """Launches, bytes and saved memory of a step in float32, ours and PyTorch's; ours by kernel, in float16 too."""
    saved_plain, net = step(network(), "reference", False), network()
    with Traffic() as plain:
        step(net, "reference", False)
    runs: dict[str, dict[str, Any]] = {}
    for dtype in (torch.float32, torch.float16):
        launches: list[tuple[str, dict[str, Any]]] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's word on kernels that are replaced
            net = network()
            with emulated_operators(launches, dtype, counters=True), Traffic() as rest:
                saved = step(net, "cuda", dtype != torch.float32)
        by_kernel: dict[str, dict[str, float]] = {}
        for kernel, found in launches:
            row = by_kernel.setdefault(kernel, {"launches": 0, **dict.fromkeys(COUNTED, 0.0)})
            row["launches"] += 1
            for name, counter in COUNTED.items():
                row[name] += found[counter]
        runs[str(dtype)] = {"launches": len(launches), "kernels": by_kernel}
        if dtype == torch.float32:  # the emulator widens maps of 16 bits again, and lowers on its own
            runs[str(dtype)] |= {"saved_bytes": saved, "torch_launches": rest.launches, "torch_bytes": rest.bytes}
    return {
        "network": SETTINGS, "shape": [BATCH, 3, SIDE, SIDE],
        "ours": {"kind": "emulated", "note": "torch_*: of what stays torch's, computed as eager's", "runs": runs},
        "eager": {"kind": "computed", "launches": plain.launches, "bytes": plain.bytes, "saved_bytes": saved_plain},
    }  # fmt: skip
