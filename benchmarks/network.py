"""Whole networks, L16 C=64: all open against what else runs them, and what skipping saves on the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dynroute
from benchmarks import peers
from benchmarks.harness import OURS, SEED, Case, Settings, bar, benchmark, measured, number
from dynroute.measure.timing import random_patterns
from dynroute.models import DynamicNetwork
from dynroute.runtime.executor import Runtime

CLASSES = 19
FLOAT = 4
TINY_NET = {"layers": 4, "channels": 8, "stem_width": 16, "num_classes": 5}
# Ours against each: how many times its time is wanted.
BARS = {peers.OPENVINO: 1.25, peers.ONNXRUNTIME: 1.45, peers.EAGER_NHWC: 2.4}
REALISED = 0.95
OWN_IMAGES = 8


@lru_cache(maxsize=2)
def network(name: str, tiny: bool) -> tuple[DynamicNetwork, Runtime]:
    """A network with seeded weights, and its runtime."""
    with torch.inference_mode(False):
        torch.manual_seed(SEED)
        net = dynroute.create_model(name, **(TINY_NET if tiny else {"num_classes": CLASSES})).eval()
        return net.requires_grad_(False), dynroute.optimize(net)


def settled(net: DynamicNetwork) -> DynamicNetwork:
    """The network, in evaluation, with the running statistics of noise: values keep their size through all layers, as
    in a trained network; with those of a new one they grow past what float16 holds."""
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        net.train()(noise(2, 128, 256), torch.ones(net.config.layers + 1, 4, 3))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def noise(n: int, h: int, w: int) -> Tensor:
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(SEED))


def executed(out: Any) -> int:
    return int(out.executed_macs.sum())


def compulsory_bytes(net: DynamicNetwork, x: Tensor) -> int:
    """Images and weights read once, logits written once: what no schedule of the network can avoid."""
    logits = x.numel() // 3 * net.config.num_classes
    return FLOAT * (x.numel() + sum(p.numel() for p in net.parameters()) + logits)


ALL_OPEN = [
    {"n": n, "h": h, "w": w} for h, w in ((512, 1024), (256, 512), (1024, 2048)) for n in (1, 2, 8)
]  # fmt: skip
TOO_LONG = {(8, 1024, 2048): "one round of all peers takes minutes; N=2 at this size and N=8 at a quarter are there"}
ONE_COMPILATION = "compiled for 1x3x512x1024 of a full run only, as it takes minutes for each shape"
QUICK_ALL_OPEN = [{"n": 1, "h": 256, "w": 512}]
TINY_ALL_OPEN = [{"n": 2, "h": 64, "w": 96}]


@benchmark("network", ALL_OPEN, QUICK_ALL_OPEN, TINY_ALL_OPEN, guess=lambda s: min(s["n"] * s["h"] * s["w"] / 2e4, 100))
def all_open(settings: Settings, n: int, h: int, w: int) -> Case:
    """Network-Fix, ours and all peers. torch.compile only at the first shape: it takes minutes for each."""
    if (n, h, w) in TOO_LONG:
        return Case(absent={OURS: TOO_LONG[n, h, w]})
    net, run = network("fix_l16", settings.scale == "tiny")
    x = noise(n, h, w)
    wanted = net(x).logits
    compiles = settings.scale == "full" and (n, h, w) == (1, 512, 1024)
    skip = {} if compiles else {peers.COMPILED: ONE_COMPILATION}
    others = peers.make_peers(peers.DenseNetwork(net).eval(), x, wanted, settings, skip)
    own = peers.Peers()
    peers.admit(own, OURS, lambda: run(x).logits, wanted)
    bars = BARS if settings.scale != "tiny" else {}
    return Case(
        own.jobs | others.jobs, number("counted", executed(run(x))), number("computed", compulsory_bytes(net, x)),
        own.errors | others.errors, own.absent | others.absent, bars,
    )  # fmt: skip


@benchmark("network", ALL_OPEN[:1], QUICK_ALL_OPEN, TINY_ALL_OPEN)
def stem_decoder(settings: Settings, n: int, h: int, w: int) -> Case:
    """Every node closed: what is left is the stem, the passing through, and the decoder. Eager computes the same stem
    and decoder, the three absent maps as zeros."""
    net, run = network("fix_l16", settings.scale == "tiny")
    x, closed = noise(n, h, w), torch.zeros_like(run.all_open_gates())
    images = x.contiguous(memory_format=torch.channels_last)
    c = net.config.channels
    zeros = [
        torch.zeros(n, c << s, h >> (s + 2), w >> (s + 2)).contiguous(memory_format=torch.channels_last)
        for s in range(1, 4)
    ]
    found = peers.Peers()
    peers.admit(found, OURS, lambda: run(x, gates=closed).logits, net(x, gates=closed).logits)
    out = run(x, gates=closed)
    jobs = found.jobs | {peers.EAGER_NHWC: lambda: net.decoder([net.stem(images), *zeros])}
    weights = sum(p.numel() for part in (net.stem, net.decoder) for p in part.parameters())
    moved = FLOAT * (x.numel() + weights + out.logits.numel())
    return Case(jobs, number("counted", executed(out)), number("computed", moved), found.errors, found.absent)


SHARES = (0.3, 0.5, 0.7, 1.0)
PATTERNS_OF = {1: 4, 2: 3, 8: 2}  # how many patterns, or batches of them, are run one after the other
ROUTED = [{"n": n, "share": share, "h": 512, "w": 1024} for n in (1, 2, 8) for share in SHARES]


QUICK_ROUTED = [{"n": 1, "share": share, "h": 256, "w": 512} for share in SHARES]
TINY_ROUTED = [{"n": 2, "share": 0.5, "h": 64, "w": 96}]


@benchmark("network", ROUTED, QUICK_ROUTED, TINY_ROUTED, guess=lambda shape: 15.0)
def routed(settings: Settings, n: int, share: float, h: int, w: int) -> Case:
    """Random patterns with `share` of the nodes open, against the same network all open.

    The realised share of a pattern is (T_open / T_routed) / (work_open / work_routed), work being the executed
    multiply-accumulates in total: 1 where the time saved is all that the work saved allows.
    """
    net, run = network("dynamic_raw_l16", settings.scale == "tiny")
    x, ones = noise(n, h, w), run.all_open_gates()
    count = PATTERNS_OF[n] if settings.scale != "quick" else 2
    patterns = random_patterns(net.config.layers, share, n * count, SEED).split(n)
    jobs = {"all_open": lambda: run(x, gates=ones)}
    work = {"all_open": executed(run(x, gates=ones))}
    for i, gates in enumerate(patterns):
        jobs[f"pattern_{i}"] = lambda gates=gates: run(x, gates=gates)
        work[f"pattern_{i}"] = executed(run(x, gates=gates))
    facts = {"work": {name: number("counted", macs) for name, macs in work.items()}}
    return Case(jobs, facts=facts, derive=lambda seconds: realised(seconds, work), judge=judge_realised(share))


def realised(seconds: Mapping[str, np.ndarray], work: Mapping[str, int], base: str = "all_open") -> dict[str, Any]:
    """Realised share of each job but the base, and of all of them run one after the other."""
    names = [name for name in seconds if name in work and name != base]
    times = sum(seconds[name] for name in names) / len(names)
    macs = sum(work[name] for name in names) / len(names)
    each = {name: measured(seconds[base] / seconds[name] * work[name] / work[base]) for name in names}
    return {
        "realised_share": measured(seconds[base] / times * macs / work[base]),
        "realised_share_of": each,
        "time_share": measured(times / seconds[base]),
        "work_share": number("counted", macs / work[base]),
    }


def judge_realised(share: float) -> Callable[[dict[str, Any]], list[dict[str, Any]]]:
    # with everything open there is nothing to realise: that row shows the noise
    if share == 1.0:
        return lambda result: []
    return lambda result: [bar("realised share", REALISED, result["derived"]["realised_share"])]


MIXED = [{"n": 8, "h": 512, "w": 1024}, {"n": 2, "h": 512, "w": 1024}]


@benchmark("network", MIXED, [{"n": 2, "h": 256, "w": 512}], TINY_ALL_OPEN, guess=lambda shape: 15.0)
def mixed_batch(settings: Settings, n: int, h: int, w: int) -> Case:
    """A batch whose samples have different routes (30, 50, 70% of the nodes in turn) against each sample by itself."""
    net, run = network("dynamic_raw_l16", settings.scale == "tiny")
    x = noise(n, h, w)
    gates = torch.stack([random_patterns(net.config.layers, SHARES[i % 3], n, SEED)[i] for i in range(n)])

    def alone() -> list[Tensor]:
        return [run(x[i : i + 1], gates=gates[i : i + 1]).logits for i in range(n)]

    same = torch.equal(torch.cat(alone()), run(x, gates=gates).logits)
    return Case(
        {OURS: lambda: run(x, gates=gates), "each_alone": alone},
        number("counted", executed(run(x, gates=gates))),
        facts={"same_bits": number("measured", same)},
        # a ratio of each alone to the batch: at least 1 means the batch is no slower
        bars={"each_alone": 1.0} if settings.scale != "tiny" else {},
    )


@benchmark("network", [{"n": 1}, {"n": 8}])
def own_gates(settings: Settings, n: int) -> Case:
    """A trained network on its validation images: its own gates, run and timed too, against all open."""
    if settings.run is None:
        return Case(absent={OURS: "no --run was given"})
    from dynroute.cli.target import data_images, load_target

    with torch.inference_mode(False):
        target = load_target(settings.run)
        run = dynroute.optimize(target.net)
        batches = list(data_images(target, None, "val", OWN_IMAGES).split(n))
    ones = run.all_open_gates()

    def over(gates: Tensor | None) -> list[Any]:
        return [run(images, gates=gates) for images in batches]

    work = {"all_open": sum(map(executed, over(ones))), "own_gates": sum(map(executed, over(None)))}
    return Case(
        {"all_open": lambda: over(ones), "own_gates": lambda: over(None)},
        facts={"run": settings.run, "work": {name: number("counted", macs) for name, macs in work.items()}},
        derive=lambda seconds: realised(seconds, work),
        judge=judge_realised(0.0),
    )
