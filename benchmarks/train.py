"""A training step on the fused operators against the same network in plain PyTorch: time, what is kept, peak memory.

A step is forward, losses with a budget, backward and the optimiser's step, as the trainer takes it.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from typing import Any

import torch

import dynroute
from benchmarks import peers
from benchmarks.harness import OURS, SEED, Case, Settings, bar, benchmark, number
from dynroute.measure.train_bench import peak_bytes, saved_bytes
from dynroute.models import DynamicNetwork
from dynroute.objective import Losses
from dynroute.train.config import OptimiserConfig
from dynroute.train.optimiser import make_optimiser
from dynroute.train.step import train_step

SPEED, SAVED, PEAK = 1.8, 0.55, 0.75  # against eager channels_last
COMPILED_SHAPE = "compiled at the smallest shape of a full run only, as it takes minutes for each"
RATE = 0.0  # the optimiser moves nothing, so that every step is the first
SHAPES: list[dict[str, Any]] = [
    {"n": 8, "c": 8, "h": 128, "w": 128, "layers": 6},  # quickstart's
    {"n": 8, "c": 16, "h": 256, "w": 256, "layers": 8},  # CamVid's
    {"n": 2, "c": 64, "h": 256, "w": 256, "layers": 16},
    {"n": 2, "c": 64, "h": 512, "w": 512, "layers": 16},
]
TINY = [{"n": 4, "c": 8, "h": 128, "w": 128, "layers": 4}]


@benchmark("train", SHAPES, SHAPES[:1], TINY, guess=lambda s: s["n"] * s["h"] * s["w"] * s["c"] * s["layers"] / 2e6)
def step(settings: Settings, n: int, c: int, h: int, w: int, layers: int) -> Case:
    """The published network's step."""
    with torch.inference_mode(False), torch.enable_grad():
        width = min(32, 2 * c) if c < 64 else 64
        net = dynroute.create_model(
            "dynamic_raw_l16", layers=layers, channels=c, num_classes=19, stem_width=width, small_gate=c < 64
        )
        images = torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(SEED))
        labels = torch.randint(0, 19, (n, h, w), generator=torch.Generator().manual_seed(SEED))
        networks: dict[str, DynamicNetwork] = {}
        jobs: dict[str, Callable[[], Losses]] = {}
        absent: dict[str, str] = {}

        def add(name: str, ops: str, layout: torch.memory_format, compiles: bool = False) -> None:
            own: Any = copy.deepcopy(net).to(memory_format=layout)  # type: ignore[call-overload]
            own.use_ops(ops)
            networks[name] = own
            run = torch.compile(own) if compiles else own
            given, optimiser = images.contiguous(memory_format=layout), make_optimiser(own, OptimiserConfig(lr=RATE))
            budget = dynroute.Budget(0.8, 0.1)

            def job() -> Losses:
                with torch.inference_mode(False), torch.enable_grad():
                    return train_step(run, optimiser, given, labels, 0.5, budget, 10.0)

            jobs[name] = job

        add(OURS, "cpu", torch.channels_last)
        for name, layout in ((peers.EAGER, torch.contiguous_format), (peers.EAGER_NHWC, torch.channels_last)):
            if settings.wants(name):
                add(name, "reference", layout)
            else:
                absent[name] = "not asked for"
        if not settings.wants(peers.COMPILED):
            absent[peers.COMPILED] = "not asked for"
        elif settings.scale != "full" or {"n": n, "c": c, "h": h, "w": w, "layers": layers} != SHAPES[0]:
            absent[peers.COMPILED] = COMPILED_SHAPE
        else:
            settings.say("torch.compile: compiling, which takes minutes")
            add(peers.COMPILED, "reference", torch.channels_last, compiles=True)
            try:
                jobs[peers.COMPILED]()
            except Exception as error:  # a peer that breaks is a result, not the end of the run
                del jobs[peers.COMPILED]
                absent[peers.COMPILED] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        gc.collect()
        gc.freeze()  # as the trainer does
        errors: dict[str, float] = {}
        facts: dict[str, Any] = {}
        for name, job in jobs.items():
            job()
            if name == peers.COMPILED:  # its graph keeps what it keeps, and hooks do not see it
                continue
            facts[f"saved_bytes_{name}"] = number("measured", saved_bytes(job, networks[name]))
            facts[f"peak_bytes_{name}"] = number("measured", peak_bytes(job), note="of torch's allocator")
        if peers.EAGER_NHWC in jobs:
            got, wanted = jobs[OURS](), jobs[peers.EAGER_NHWC]()
            errors[OURS] = max(float((got[k] - wanted[k]).abs() / wanted[k].abs()) for k in wanted)
            facts["gradient_error"] = number(
                "measured",
                gradient_error(networks[OURS], networks[peers.EAGER_NHWC]),
                note="against eager channels_last, over the largest gradient; where a ReLU's sign hangs on rounding, "
                "two exact enough results differ by what passes there",
            )
    bars = {peers.EAGER_NHWC: SPEED} if settings.scale != "tiny" else {}
    return Case(jobs=dict(jobs), errors=errors, absent=absent, bars=bars, facts=facts, judge=_judge)


def gradient_error(net: DynamicNetwork, definition: DynamicNetwork) -> float:
    """The largest difference between gradients, over the largest gradient."""
    pairs = [(a.grad, b.grad) for a, b in zip(net.parameters(), definition.parameters()) if b.grad is not None]
    largest = max(float(wanted.abs().max()) for _, wanted in pairs)
    return max(float((got - wanted).abs().max()) for got, wanted in pairs if got is not None) / largest


def _judge(result: dict[str, Any]) -> list[dict[str, Any]]:
    facts, found = result["facts"], []
    for name, wanted in (("saved", SAVED), ("peak", PEAK)):
        eager = facts.get(f"{name}_bytes_{peers.EAGER_NHWC}")
        if eager is not None:
            share = number("measured", facts[f"{name}_bytes_{OURS}"]["value"] / max(eager["value"], 1))
            found.append(bar(f"{name} bytes / eager's", wanted, share, at_least=False))
    return found
