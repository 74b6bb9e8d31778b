"""Whole networks on a GPU: ours against eager PyTorch, torch.compile and TensorRT, dense and routed.

Times are CUDA events around a call, interleaved, with the L2 cache flushed before each ("cold") and not ("warm"); p50
and p95, in milliseconds.  Clocks and power are noted, never set.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dynroute
from benchmarks.harness import SEED
from benchmarks.network import CLASSES, executed
from benchmarks.peers import DenseNetwork, relative_error
from dynroute.measure.timing import random_patterns
from dynroute.models import DynamicNetwork

FLUSH_BYTES = 256 << 20  # several times any L2
WARMUP = 5
SHAPES = ((1, 512, 1024), (1, 1024, 2048), (8, 512, 1024))
QUICK_SHAPES = ((1, 256, 512),)
SHARES = (0.3, 0.5, 0.7, 1.0)
ERROR = {
    torch.float16: 0.05,
    torch.bfloat16: 0.3,
    torch.float32: 1e-3,
}  # of the largest logit; only nonsense is refused


def network(name: str) -> DynamicNetwork:
    """On the CPU, with seeded weights."""
    torch.manual_seed(SEED)
    return dynroute.create_model(name, num_classes=CLASSES).eval().requires_grad_(False)


def times(jobs: dict[str, Callable[[], object]], rounds: int, cold: bool) -> dict[str, np.ndarray]:
    """Milliseconds [rounds] of each job on the device; every round starts with another one."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda") if cold else None
    names = list(jobs)
    taken = np.zeros((len(names), rounds))
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for turn in range(-WARMUP, rounds):
        for i in range(len(names)):
            which = (i + turn) % len(names)
            if flush is not None:
                flush.zero_()
            start.record()
            jobs[names[which]]()
            end.record()
            end.synchronize()
            if turn >= 0:
                taken[which, turn] = start.elapsed_time(end)
    return dict(zip(names, taken))


def summary(values: np.ndarray) -> dict[str, Any]:
    """p50 and p95 of samples."""
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {"kind": "measured", "p5": float(low), "p50": float(middle), "p95": float(high), "samples": len(values)}


def clocks() -> dict[str, str]:
    """What nvidia-smi says of clocks, power and temperature; empty without it."""
    fields = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,power.limit,temperature.gpu,driver_version"
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (
        dict(zip(fields.split(","), (part.strip() for part in done.stdout.split(",")))) if not done.returncode else {}
    )


def copy_rate() -> dict[str, Any]:
    """GB/s of a large copy on the device, bytes read and written added: the memory's ceiling."""
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    taken = times({"copy": lambda: target.copy_(source)}, 10, False)["copy"]
    return {"kind": "measured", "gbs": 2 * source.nbytes / float(np.median(taken)) * 1e-6}


def peers(net: DynamicNetwork, x: Tensor, dtype: torch.dtype) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The dense network as others run it, and why the rest is not there."""
    images = x.to(dtype).contiguous(memory_format=torch.channels_last)
    dense = DenseNetwork(net).eval().to("cuda", dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    jobs: dict[str, Callable[[], Any]] = {"eager": lambda: dense(images)}
    absent: dict[str, str] = {}
    try:
        compiled = torch.compile(dense, mode="max-autotune")
        compiled(images)
        jobs["torch_compile"] = lambda: compiled(images)
    except Exception as error:  # whatever the compiler trips over here
        absent["torch_compile"] = f"{type(error).__name__}: {error}"[:300]
    try:
        import torch_tensorrt  # type: ignore[import-not-found]

        engine = torch_tensorrt.compile(dense, inputs=[images], enabled_precisions={dtype})
        jobs["tensorrt"] = lambda: engine(images)
    except ImportError:
        absent["tensorrt"] = "torch_tensorrt is not installed"
    except Exception as error:
        absent["tensorrt"] = f"{type(error).__name__}: {error}"[:300]
    return jobs, absent


def all_open(n: int, h: int, w: int, dtype: torch.dtype, rounds: int, with_peers: bool = True) -> dict[str, Any]:
    """Network-Fix: ours and the peers on one input; a peer, or we, whose output is wrong gets no time."""
    import copy

    net = network("fix_l16")
    x = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(SEED)).cuda()
    with torch.no_grad():
        wanted = copy.deepcopy(net).cuda()(x).logits.float()
    run = dynroute.optimize(net, backend="cuda", storage=dtype)
    jobs: dict[str, Callable[[], Any]] = {"ours": lambda: run(x).logits}
    absent: dict[str, str] = {}
    with torch.no_grad():
        if with_peers:
            others, absent = peers(copy.deepcopy(net), x, dtype)
            jobs |= others
        errors = {name: relative_error(job().float(), wanted) for name, job in jobs.items()}
        for name in [name for name in jobs if errors[name] > ERROR[dtype]]:
            absent[name] = f"no time: its output differs by {errors[name]:.2g} of the largest value"
            del jobs[name]
        measured = {
            cache: {name: summary(values) for name, values in times(jobs, rounds, cache == "cold").items()}
            for cache in ("warm", "cold")
        }
    return {"shape": [n, 3, h, w], "dtype": str(dtype), "macs": executed(run(x)), "ms": measured, "errors": errors,
            "absent": absent}  # fmt: skip


def routed(n: int, h: int, w: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Random patterns with a share of the nodes open against the same runtime all open: what skipping saves."""
    net = network("dynamic_raw_l16")
    run = dynroute.optimize(net, backend="cuda", storage=dtype)
    x = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(SEED)).cuda()
    patterns = {share: random_patterns(net.config.layers, share, n, SEED).cuda() for share in SHARES}
    work = {share: executed(run(x, gates=gates)) for share, gates in patterns.items()}
    taken = times(
        {str(share): lambda gates=gates: run(x, gates=gates) for share, gates in patterns.items()}, rounds, False
    )
    base = np.median(taken["1.0"])
    return {
        "shape": [n, 3, h, w], "dtype": str(dtype),
        "patterns": {
            str(share): {
                "ms": summary(taken[str(share)]),
                "macs": {"kind": "counted", "value": work[share]},
                "realised_share": {
                    "kind": "measured",
                    "value": float(base / np.median(taken[str(share)]) * work[share] / work[1.0]),
                },
            }
            for share in SHARES
        },
    }  # fmt: skip
