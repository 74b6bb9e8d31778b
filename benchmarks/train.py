"""A training step on the fused operators against the same network in plain PyTorch: time, what is kept, peak memory;
the same under autocast; and steps that leave closed samples out against steps that compute them.

A step is forward, losses with a budget, backward and the optimiser's step, as the trainer takes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

import dynroute
from benchmarks import peers
from benchmarks.harness import OURS, SEED, Case, Settings, bar, benchmark, number
from dynroute.measure.memory import allocations, peak, saved_bytes
from dynroute.measure.timing import random_patterns
from dynroute.models import DynamicNetwork
from dynroute.models.fused import BATCHNORM
from dynroute.native import library
from dynroute.native.memory import settle
from dynroute.objective import Losses, segmentation_loss
from dynroute.train.config import OptimiserConfig
from dynroute.train.optimiser import make_optimiser, precise_batchnorm
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
ROUTED = [{**shape, "share": share} for shape in SHAPES[1:3] for share in (0.75, 0.5, 0.25)]

LAYOUTS = {OURS: torch.channels_last, peers.EAGER: torch.contiguous_format, peers.EAGER_NHWC: torch.channels_last}


def make(n: int, c: int, h: int, w: int, layers: int) -> tuple[DynamicNetwork, torch.Tensor, torch.Tensor]:
    """A network, and the images and labels of its steps."""
    torch.manual_seed(SEED)
    width = min(32, 2 * c) if c < 64 else 64
    net = dynroute.create_model(
        "dynamic_raw_l16", layers=layers, channels=c, num_classes=19, stem_width=width, small_gate=c < 64
    )
    return net, torch.randn(n, 3, h, w), torch.randint(0, 19, (n, h, w))


def step_of(
    net: DynamicNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    name: str,
    compiles: bool = False,
    amp: torch.dtype | None = None,
) -> tuple[DynamicNetwork, Callable[[], Losses]]:
    """A copy of the network that trains as `name` says, and its step."""
    layout = LAYOUTS.get(name, torch.channels_last)
    own: Any = copy.deepcopy(net).to(memory_format=layout)  # type: ignore[call-overload]
    own.use_ops("cpu" if name == OURS else "reference")
    run = torch.compile(own) if compiles else own
    given, optimiser = images.contiguous(memory_format=layout), make_optimiser(own, OptimiserConfig(lr=RATE))
    budget = dynroute.Budget(0.8, 0.1)

    def job() -> Losses:
        with torch.inference_mode(False), torch.enable_grad():
            return train_step(run, optimiser, given, labels, 0.5, budget, 10.0, amp)

    return own, job


def memory_of(shape: dict[str, Any], name: str, threads: int, amp: torch.dtype | None = None) -> tuple[int, int]:
    """Bytes kept for the backward, and at most."""
    torch.set_num_threads(threads)
    own, job = step_of(*make(**shape), name, amp=amp)
    job()
    return saved_bytes(job, own), peak(allocations(job))


def macs_of(job: Callable[[], Any]) -> dict[str, Any]:
    """What the kernels of a step count: the stem's first convolution and the predictor are torch's, and not in it.

    (torch's own counter takes a depthwise convolution's backward for a dense one's.)
    """
    before = library.total_macs()
    job()
    return number("counted", library.total_macs() - before, note="depthwise outputs that are made again included")


@benchmark("train", SHAPES, SHAPES[:1], TINY, guess=lambda s: s["n"] * s["h"] * s["w"] * s["c"] * s["layers"] / 2e6)
def step(settings: Settings, n: int, c: int, h: int, w: int, layers: int) -> Case:
    """The published network's step."""
    shape = {"n": n, "c": c, "h": h, "w": w, "layers": layers}
    with torch.inference_mode(False), torch.enable_grad():
        parts = make(**shape)
        networks: dict[str, DynamicNetwork] = {}
        jobs: dict[str, Callable[[], Losses]] = {}
        absent: dict[str, str] = {}
        for name in (OURS, peers.EAGER, peers.EAGER_NHWC):
            if name == OURS or settings.wants(name):
                networks[name], jobs[name] = step_of(*parts, name)
            else:
                absent[name] = "not asked for"
        if not settings.wants(peers.COMPILED):
            absent[peers.COMPILED] = "not asked for"
        elif settings.scale != "full" or shape != SHAPES[0]:
            absent[peers.COMPILED] = COMPILED_SHAPE
        else:
            settings.say("torch.compile: compiling, which takes minutes")
            networks[peers.COMPILED], jobs[peers.COMPILED] = step_of(*parts, peers.COMPILED, compiles=True)
            try:
                jobs[peers.COMPILED]()
            except Exception as error:  # a peer that breaks is a result, not the end of the run
                del jobs[peers.COMPILED]
                absent[peers.COMPILED] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
        settle()  # as the trainer does
        errors: dict[str, float] = {}
        facts: dict[str, Any] = {}
        for job in jobs.values():
            job()
        macs = macs_of(jobs[OURS])
        # in a process of its own: torch's profiler makes every later step of its process slower
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            for name in LAYOUTS.keys() & jobs.keys():
                saved, most = pool.submit(memory_of, shape, name, torch.get_num_threads()).result()
                facts[f"saved_bytes_{name}"] = number("measured", saved)
                facts[f"peak_bytes_{name}"] = number("measured", most, note="of torch's allocator")
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
    return Case(jobs=dict(jobs), macs=macs, errors=errors, absent=absent, bars=bars, facts=facts, judge=_judge)


FLOAT32 = "float32"  # our operators without autocast


@benchmark("train", SHAPES[1:3], SHAPES[1:2], TINY)
def under_autocast(settings: Settings, n: int, c: int, h: int, w: int, layers: int) -> Case:
    """The step under autocast to bfloat16: products in float32, what is kept of them in bfloat16."""
    shape = {"n": n, "c": c, "h": h, "w": w, "layers": layers}
    with torch.inference_mode(False), torch.enable_grad():
        jobs: dict[str, Callable[[], Losses]] = {}
        facts: dict[str, Any] = {}
        parts, lowered = make(**shape), {OURS: torch.bfloat16, FLOAT32: None}
        for name, amp in lowered.items():
            _, jobs[name] = step_of(*parts, OURS, amp=amp)
            jobs[name]()
        settle()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            for name, amp in lowered.items():
                run = pool.submit(memory_of, shape, OURS, torch.get_num_threads(), amp)
                facts[f"saved_bytes_{name}"], facts[f"peak_bytes_{name}"] = (
                    number("measured", v) for v in run.result()
                )
        got, wanted = jobs[OURS](), jobs[FLOAT32]()
        apart = max(float((got[k] - wanted[k]).detach().abs() / wanted[k].detach().abs()) for k in wanted)
        facts["loss_difference"] = number("measured", apart, note="relative, between the two")
    return Case(jobs=dict(jobs), facts=facts)


@benchmark("train", ROUTED, ROUTED[:1], [{**TINY[0], "share": 0.5}])
def routed(settings: Settings, n: int, c: int, h: int, w: int, layers: int, share: float) -> Case:
    """Forward, segmentation loss and backward with a share of the nodes open, by random patterns, one for each sample.

    Ours leaves closed samples out, statistics too (`bn="open"`); beside it, with the same routes, fused operators that
    compute everything ("all"), and that leave closed samples out under frozen statistics.
    """
    with torch.inference_mode(False), torch.enable_grad():
        net, images, labels = make(n, c, h, w, layers)
        images = images.contiguous(memory_format=torch.channels_last)
        precise_batchnorm(net, [images])  # for those that are frozen
        gates = random_patterns(layers, share, n, SEED)
        jobs: dict[str, Callable[[], object]] = {}
        facts: dict[str, Any] = {}
        for bn in BATCHNORM:
            own: Any = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            own.use_ops("cpu").bn = bn

            def job(own: Any = own) -> None:
                with torch.inference_mode(False), torch.enable_grad():
                    own.zero_grad(set_to_none=True)
                    segmentation_loss(own, own(images, gates=gates), labels).backward()

            name = OURS if bn == "open" else bn
            job()
            facts[f"macs_{name}"] = macs_of(job)
            jobs[name] = job
        settle()
    return Case(jobs=jobs, facts=facts)


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
