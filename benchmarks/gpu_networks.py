"""Whole networks on a GPU, for the stages of `gpu_check.py`: ours against eager PyTorch, torch.compile and TensorRT,
dense and routed, and training steps.

Each stage yields its document again and again as it grows: what is measured is written down, whatever happens next.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dynroute
from benchmarks.gpu_clock import Gpu
from benchmarks.gpu_counters import counters
from benchmarks.gpu_operators import operators
from benchmarks.gpu_train_operators import training_operators
from benchmarks.harness import SEED
from benchmarks.network import CLASSES, TINY_NET, executed, settled
from benchmarks.peers import DenseNetwork, relative_error
from dynroute.measure.timing import random_patterns
from dynroute.models import DynamicNetwork
from dynroute.models.fused import why_not
from dynroute.train.config import OptimiserConfig
from dynroute.train.optimiser import make_optimiser
from dynroute.train.recorded import RecordedStep
from dynroute.train.step import train_step

Document = dict[str, Any]
SHAPES = ((1, 512, 1024), (1, 1024, 2048), (8, 512, 1024))
QUICK_SHAPES = ((1, 256, 512),)
TINY_SHAPES = ((1, 64, 96),)
SHARES = (0.3, 0.5, 0.7, 1.0)
TRAINED = ((2, 512, 512), (8, 512, 512))
LONGEST = 30  # kernels of a step that are told
PROFILED = (1, 1024, 2048)
# of the largest logit; only nonsense is refused
ERROR = {torch.float16: 0.05, torch.bfloat16: 0.3, torch.float32: 1e-3}


class Scale:
    """How much a stage does: shapes and rounds of a full run, of a look (`--quick`), of a dry run."""

    def __init__(self, gpu: Gpu, quick: bool) -> None:
        self.dry = gpu.device == "cpu"
        self.shapes = TINY_SHAPES if self.dry else QUICK_SHAPES if quick else SHAPES
        self.trained = TINY_SHAPES if self.dry else TRAINED[:1] if quick else TRAINED
        self.rounds = 3 if self.dry else 20 if quick else 30
        self.dtypes = (torch.float32,) if self.dry else (torch.float16,) if quick else tuple(ERROR)
        self.network = cache(self._network)

    def _network(self, name: str) -> DynamicNetwork:
        """On the CPU, with seeded weights; nobody changes it."""
        torch.manual_seed(SEED)
        settings = TINY_NET if self.dry else {"num_classes": CLASSES}
        return settled(dynroute.create_model(name, **settings)).requires_grad_(False)


def summary(values: np.ndarray, kind: str) -> dict[str, Any]:
    """p5, p50 and p95 of samples."""
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {"kind": kind, "p5": float(low), "p50": float(middle), "p95": float(high), "samples": len(values)}


def noise(gpu: Gpu, n: int, h: int, w: int) -> Tensor:
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(SEED)).to(gpu.device)


def speed(gpu: Gpu, quick: bool) -> Iterator[Document]:
    """Ours against eager PyTorch, all open, each type; random patterns against our own all open; with and without
    kernels that overlap, and kernel by kernel; the operators by themselves."""
    scale = Scale(gpu, quick)
    document: Document = {"copy": copy_rate(gpu), "all_open": [], "routed": []}
    for shape in scale.shapes:
        for dtype in scale.dtypes:
            document["all_open"].append(all_open(gpu, scale, shape, dtype))
            yield document
        document["routed"].append(routed(gpu, scale, shape, scale.dtypes[0]))
        yield document
    document |= overlap(scale.dry, quick)
    yield document
    document["operators"] = list(operators(gpu, scale.dtypes[0], scale.rounds))
    yield document
    document["counters"] = {"absent": "a dry run"} if scale.dry else counters()
    yield document


def overlap(dry: bool, quick: bool) -> Document:
    """A network whose kernels may overlap against one where they may not, each in a process of its own, as the library
    reads DYNROUTE_CUDA_PDL once. The kernels' own times are the latter's: in the former they wait in one another's."""
    flags = [flag for flag, on in (("--dry-run", dry), ("--quick", quick)) if on]
    found: Document = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (("on", "1"), ("off", "0")):
            out = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "benchmarks.gpu_check", "--measure", "one_call", str(out), *flags]
            subprocess.run(command, check=True, env=os.environ | {"DYNROUTE_CUDA_PDL": value})
            found[name] = json.loads(out.read_text())
    on, off = found["on"], found["off"]
    told = {"shape": off["shape"], "dtype": off["dtype"]}
    ms = {name: one["ms"] for name, one in found.items()}
    same_bits = on["logits"] == off["logits"]
    return {
        "overlap": {**told, "ms": ms, "same_bits": same_bits}, "kernels": [{**told, "of_a_call": off["kernels"]}]
    }  # fmt: skip


def one_call(gpu: Gpu, quick: bool) -> Iterator[Document]:
    """For `overlap`: everything open; the call's time, its kernels one by one, and what its logits were."""
    scale = Scale(gpu, quick)
    shape, dtype = PROFILED if PROFILED in scale.shapes else scale.shapes[-1], scale.dtypes[0]
    run, x = runtime(gpu, scale, "dynamic_raw_l16", dtype), noise(gpu, *shape)
    gates = run.all_open_gates()
    jobs: dict[str, Callable[[], object]] = {"ours": lambda: run(x, gates=gates)}
    taken = {how: gpu.on_device(jobs, scale.rounds, how == "cold")["ours"] for how in ("warm", "cold")}
    logits = run(x, gates=gates).logits.cpu().numpy()
    yield {
        "shape": [shape[0], 3, *shape[1:]], "dtype": str(dtype), "kernels": gpu.kernels(jobs["ours"]),
        "ms": {how: summary(values, gpu.kind) for how, values in taken.items()},
        "logits": hashlib.sha256(logits.tobytes()).hexdigest(),
    }  # fmt: skip


def runtime(gpu: Gpu, scale: Scale, name: str, dtype: torch.dtype) -> Any:
    return dynroute.optimize(scale.network(name), backend=gpu.backend, storage=dtype)


def copy_rate(gpu: Gpu) -> dict[str, Any]:
    """GB/s of a large copy on the device, bytes read and written added: the memory's ceiling."""
    source = torch.ones(1 << (28 if gpu.device == "cuda" else 16), device=gpu.device)
    target = torch.empty_like(source)
    taken = gpu.on_device({"copy": lambda: target.copy_(source)}, 10, False)["copy"]
    return {"kind": gpu.kind, "gbs": 2 * source.nbytes / float(np.median(taken)) * 1e-6}


def eager_of(gpu: Gpu, net: DynamicNetwork, dtype: torch.dtype) -> torch.nn.Module:
    """The dense network in plain PyTorch, channels_last."""
    dense: Any = DenseNetwork(net).eval().to(gpu.device, dtype)
    return dense.to(memory_format=torch.channels_last)


def all_open(gpu: Gpu, scale: Scale, shape: tuple[int, int, int], dtype: torch.dtype, **peers: Any) -> Document:
    """Network-Fix: ours and the peers on one input, eager always, as a CUDA graph too; who computes something else gets
    no time."""
    net, x = scale.network("fix_l16"), noise(gpu, *shape)
    absent: dict[str, str] = {}
    images = x.to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        wanted = copy.deepcopy(net).to(gpu.device)(x).logits.float()
        run, dense = runtime(gpu, scale, "fix_l16", dtype), eager_of(gpu, copy.deepcopy(net), dtype)
        jobs: dict[str, Callable[[], Any]] = {"ours": lambda: run(x).logits, "eager": lambda: dense(images)}
        jobs["eager_graph"] = gpu.recorded(jobs["eager"])
        for name, make in peers.items():
            try:
                peer = make(dense, images)
                jobs[name] = lambda peer=peer: peer(images)
                jobs[name]()
            except Exception as error:  # a peer that breaks is a result, not the end of the run
                jobs.pop(name, None)
                absent[name] = f"{type(error).__name__}: {error}"[:300]
        errors = {name: relative_error(job().float(), wanted) for name, job in jobs.items()}
        for name in [name for name in jobs if not errors[name] <= ERROR[dtype]]:  # NaN too
            absent[name] = f"no time: its output differs by {errors.pop(name):.2g} of the largest value"
            del jobs[name]
        taken = {
            "warm": gpu.on_device(jobs, scale.rounds, False),
            "cold": gpu.on_device(jobs, scale.rounds, True),
            "call": gpu.calls(jobs, scale.rounds),
        }
    return {
        "shape": [shape[0], 3, *shape[1:]], "dtype": str(dtype), "macs": executed(run(x)), "errors": errors,
        "ms": {how: {name: summary(v, gpu.kind) for name, v in values.items()} for how, values in taken.items()},
        "absent": absent,
    }  # fmt: skip


def routed(gpu: Gpu, scale: Scale, shape: tuple[int, int, int], dtype: torch.dtype) -> Document:
    """Random patterns with a share of the nodes open against the same runtime all open: what skipping saves."""
    run, x = runtime(gpu, scale, "dynamic_raw_l16", dtype), noise(gpu, *shape)
    layers = scale.network("dynamic_raw_l16").config.layers
    patterns = {share: random_patterns(layers, share, shape[0], SEED).to(gpu.device) for share in SHARES}
    work = {share: executed(run(x, gates=gates)) for share, gates in patterns.items()}
    jobs = {str(share): lambda gates=gates: run(x, gates=gates) for share, gates in patterns.items()}
    taken = gpu.on_device(jobs, scale.rounds, False)
    base = np.median(taken["1.0"])
    return {
        "shape": [shape[0], 3, *shape[1:]], "dtype": str(dtype),
        "patterns": {
            str(share): {
                "ms": summary(taken[str(share)], gpu.kind),
                "macs": {"kind": "counted", "value": work[share]},
                "realised_share": {
                    "kind": gpu.kind,
                    "value": float(base / np.median(taken[str(share)]) * work[share] / work[1.0]),
                },
            }
            for share in SHARES
        },
    }  # fmt: skip


def train(gpu: Gpu, quick: bool) -> Iterator[Document]:
    """The published network's step on the device: by `ops="auto"`, whatever that takes here, and by plain PyTorch, in
    float32 and under autocast, as it is and recorded as a CUDA graph; kernel by kernel; then the operators apart."""
    scale = Scale(gpu, quick)
    document: Document = {"cuda_operators": why_not("cuda") or "they train", "training": []}
    for n, h, w in scale.trained:
        torch.manual_seed(SEED)
        settings = TINY_NET if scale.dry else {"num_classes": CLASSES}
        net = dynroute.create_model("dynamic_raw_l16", **settings)
        labels = torch.randint(0, net.config.num_classes, (n, h, w)).to(gpu.device)
        images = noise(gpu, n, h, w).contiguous(memory_format=torch.channels_last)
        for amp in (None, torch.bfloat16):
            jobs = {ops: step_job(gpu, net, ops, images, labels, amp, False) for ops in ("auto", "reference")}
            peak = {name: gpu.memory(job) for name, job in jobs.items()}
            for ops in ("auto", "reference"):
                jobs[f"{ops}_graph"] = step_job(gpu, net, ops, images, labels, amp, True)
            # not in turns: a graph that another was replayed before has to be brought to the device again
            taken = {name: gpu.calls({name: job}, max(scale.rounds // 4, 3))[name] for name, job in jobs.items()}
            document["training"].append({
                "shape": [n, 3, h, w], "autocast": "bfloat16" if amp else None,
                "ms": {name: summary(values, gpu.kind) for name, values in taken.items()},
                "peak_bytes": {name: {"kind": gpu.kind, "value": value} for name, value in peak.items()},
            })  # fmt: skip
            yield document
            kernels = {ops: gpu.kernels(jobs[ops], 2) for ops in ("auto", "reference")}
            document["training"][-1] |= {
                "launches": {name: sum(k["launches"] for k in found) for name, found in kernels.items()},
                "device_ms": {
                    name: {"kind": gpu.kind, "value": 1e-3 * sum(k["us"] for k in found)}
                    for name, found in kernels.items()
                },
                "kernels": {name: found[:LONGEST] for name, found in kernels.items()},
            }
            yield document
    document["operators"] = []
    for row in training_operators(gpu, "cpu" if scale.dry else "cuda", max(scale.rounds // 2, 3)):
        document["operators"].append(row)
        yield document


def triton(gpu: Gpu, quick: bool) -> Iterator[Document]:
    """The Triton backend beside the CUDA one and eager: the network all open, and a training step."""
    scale = Scale(gpu, quick)
    missing = "a dry run: its kernels would be interpreted" if scale.dry else why_not("triton")
    document: Document = {"triton": missing or "it runs", "all_open": [], "training": []}
    yield document
    if missing is not None:
        return
    for dtype in scale.dtypes:
        shape = scale.shapes[0]
        run, x = dynroute.optimize(scale.network("fix_l16").cuda(), "triton", dtype), noise(gpu, *shape)
        peer = partial(_by_triton, run, x)
        document["all_open"].append(all_open(gpu, scale, shape, dtype, triton=peer))
        yield document
    n, h, w = scale.trained[0]
    torch.manual_seed(SEED)
    net = dynroute.create_model("dynamic_raw_l16", num_classes=CLASSES)
    labels = torch.randint(0, CLASSES, (n, h, w)).to(gpu.device)
    images = noise(gpu, n, h, w).contiguous(memory_format=torch.channels_last)
    for amp in (None, torch.bfloat16):
        taken = {
            ops: gpu.calls({ops: step_job(gpu, net, ops, images, labels, amp, True)}, 5)[ops]
            for ops in ("triton", "auto", "reference")
        }
        document["training"].append({
            "shape": [n, 3, h, w], "autocast": "bfloat16" if amp else None,
            "ms": {name: summary(values, gpu.kind) for name, values in taken.items()},
        })  # fmt: skip
        yield document


def _by_triton(run: Any, x: Tensor, *_: Any) -> Callable[[Tensor], Tensor]:
    """A peer of `all_open`, that takes float32 images as ours does."""
    return lambda _: run(x).logits  # type: ignore[no-any-return]


def step_job(
    gpu: Gpu, net: DynamicNetwork, ops: str, images: Tensor, labels: Tensor, amp: torch.dtype | None, recorded: bool
) -> Callable[[], object]:
    """A training step of a copy of the network on these operators, that moves no weight."""
    own: Any = copy.deepcopy(net).to(gpu.device).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    own.use_ops(ops)
    optimiser = make_optimiser(own, OptimiserConfig(lr=0.0))
    if recorded and gpu.device == "cuda":
        return partial(RecordedStep(own, optimiser, None, 10.0, amp), images, labels, 0.5)
    return partial(train_step, own, optimiser, images, labels, 0.5, None, 10.0, amp)


def compiled(gpu: Gpu, quick: bool) -> Iterator[Document]:
    """torch.compile (once, one shape, half precision) and, where it is installed, TensorRT, beside ours and eager."""
    scale = Scale(gpu, quick)
    shape, dtype = scale.shapes[0], scale.dtypes[0]

    def by_torch(dense: torch.nn.Module, images: Tensor) -> Any:
        mode = "default" if scale.dry or quick else "max-autotune-no-cudagraphs"
        backend = "aot_eager" if scale.dry else "inductor"  # whether it traces is what a dry run can tell
        return torch.compile(dense, backend=backend, mode=None if scale.dry else mode)

    def by_tensorrt(dense: torch.nn.Module, images: Tensor) -> Any:
        import torch_tensorrt  # type: ignore[import-not-found]

        return torch_tensorrt.compile(dense, inputs=[images], enabled_precisions={dtype})

    document: Document = {"all_open": []}
    for peer in ({"torch_compile": by_torch}, {"tensorrt": by_tensorrt}):
        document["all_open"].append(all_open(gpu, scale, shape, dtype, **peer))
        yield document
