"""Memory of inference: what a call allocates in the steady state, and the workspace against eager PyTorch's peak.

Torch's allocations are read from its profiler, event by event. Native ones are read from the C library: what malloc
holds, over all its arenas, before and after calls; other C libraries than glibc do not say, and then it is absent.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

import dynroute
from benchmarks import peers
from benchmarks.harness import Case, Settings, bar, benchmark, number
from benchmarks.network import QUICK_ALL_OPEN, TINY_ALL_OPEN, network, noise
from dynroute.measure.memory import allocations, peak
from dynroute.models.stem import pad_images
from dynroute.native.network import network_workspace

FLOAT = 4
REPEATS = 10
WORKSPACE_SHARE = 0.5
# Python's own objects come and go by a few kilobytes per call.
NATIVE_SLACK = 64 << 10


def without(sizes: list[int], output: int) -> list[int]:
    """The events less the last allocation of that many bytes: the output's, which stays."""
    last = max(i for i, size in enumerate(sizes) if size == output)
    return sizes[:last] + sizes[last + 1 :]


def malloc_held() -> int | None:
    """Bytes that the C library has handed out and not got back, all arenas and mappings; None where it does not say."""
    try:
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
        libc.fclose.argtypes = [ctypes.c_void_p]
    except (OSError, AttributeError):
        return None
    with tempfile.TemporaryFile() as file:
        stream = libc.fdopen(os.dup(file.fileno()), b"w")
        libc.malloc_info(0, stream)
        libc.fclose(stream)
        file.seek(0)
        root = ElementTree.fromstring(file.read())
    total = {node.get("type"): int(node.get("size", 0)) for node in root.findall("total")}
    system = next(int(node.get("size", 0)) for node in root.findall("system") if node.get("type") == "current")
    return system - total.get("fast", 0) - total.get("rest", 0) + total.get("mmap", 0)


# Run in a process of its own: threads keep the kernels' scratch between calls, and other benchmarks have filled it.
FIRST_CALL = """
import torch
torch.set_num_threads({threads})
from benchmarks.memory import malloc_held
from benchmarks.network import network, noise
_, run = network("fix_l16", False)
x = noise({n}, {h}, {w})
before = malloc_held()
out = run(x)
print(malloc_held() - before - out.logits.nbytes - sum(t.nbytes for t in run.executor._idle))
"""


def scratch_bytes(n: int, h: int, w: int) -> int:
    """What malloc holds more after a first call, less the workspace and the logits: at most the kernels' scratch, which
    their threads keep, and whatever else is made once."""
    code = FIRST_CALL.format(threads=torch.get_num_threads(), n=n, h=h, w=w)
    folder = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return max(0, int(done.stdout.split()[-1]))


def resident() -> int | None:
    """Bytes of this process in memory."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


@benchmark(
    "memory", [{"n": n, "h": 512, "w": 1024} for n in (1, 8)], QUICK_ALL_OPEN, TINY_ALL_OPEN, guess=lambda shape: 15.0
)
def steady_state(settings: Settings, n: int, h: int, w: int) -> Case:
    """Allocations of a call after the first, and workspace, for Network-Fix."""
    net, _ = network("fix_l16", settings.scale == "tiny")
    run = dynroute.optimize(net)  # one of its own: a runtime keeps the largest workspace that it has needed
    x = noise(n, h, w)
    executor: Any = run.executor
    config = executor.packed.config
    out = run(x)
    outputs = sum(getattr(out, name).nbytes for name in ("gates", "executed_nodes"))
    padded = pad_images(x, net.config.small_gate).contiguous()
    forced = torch.ones(n, *run.all_open_gates().shape)
    workspace = torch.empty(network_workspace(n, *padded.shape[-2:], config))
    logits = torch.empty_like(out.logits)
    packed = executor.packed

    def engine() -> object:
        return torch.ops.dynroute.network_forward(
            padded, packed.weights, packed.table, config, forced, workspace, logits
        )

    engine()
    in_engine = allocations(engine)
    outside = [int(t.nbytes) for t in engine()]  # type: ignore[attr-defined]
    in_call = allocations(lambda: run(x))
    extra = peak(in_call) - outputs
    held = sum(t.nbytes for t in executor._idle)
    del out
    grown = {"malloc": malloc_held(), "resident": resident()}
    for _ in range(REPEATS):
        run(x)
    for name, after in (("malloc", malloc_held()), ("resident", resident())):
        grown[name] = None if after is None or grown[name] is None else after - grown[name]  # type: ignore[operator]

    dense = peers.DenseNetwork(net).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = x.contiguous(memory_format=torch.channels_last)
    dense(images)
    eager = peak(without(allocations(lambda: dense(images)), logits.nbytes))
    facts: dict[str, Any] = {
        "engine_allocations": number("measured", len([size for size in in_engine if size > 0])),
        "engine_outputs": number("computed", len(outside)),
        "engine_bytes_beside_outputs": number("measured", sum(size for size in in_engine if size > 0) - sum(outside)),
        "call_bytes_beside_outputs": number("measured", extra, note="costs and sums of the counters, in Python"),
        "workspace_bytes": number("computed", network_workspace(n, *padded.shape[-2:], config) * FLOAT),
        "workspace_held_bytes": number("measured", held),
        "eager_peak_bytes": number(
            "measured", eager, note="of torch's allocator, channels_last, without the logits' own allocation"
        ),
        "repeats": REPEATS,
    }
    for name, value in grown.items():
        facts[f"{name}_growth_bytes"] = {"absent": "not known here"} if value is None else number("measured", value)
    if settings.scale != "tiny" and malloc_held() is not None:
        facts["scratch_bytes"] = number("measured", scratch_bytes(n, h, w))
    return Case(facts=facts, judge=_judge)


def _judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    facts = result["facts"]
    ours = facts["workspace_held_bytes"]["value"] + facts.get("scratch_bytes", {}).get("value", 0)
    share = ours / max(facts["eager_peak_bytes"]["value"], 1)
    bars = [
        bar("workspace and scratch / eager's peak", WORKSPACE_SHARE, number("measured", share), at_least=False),
        bar("bytes allocated in the engine beside its outputs", 0, facts["engine_bytes_beside_outputs"], False),
    ]
    grown = facts["malloc_growth_bytes"]
    if "value" in grown:
        bars.append(bar(f"malloc's growth over {REPEATS} calls, bytes", NATIVE_SLACK, grown, at_least=False))
    return bars
