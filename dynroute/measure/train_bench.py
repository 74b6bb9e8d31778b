"""A training step on the fused operators beside plain PyTorch's: what `dynroute bench --train` runs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dynroute.measure.memory import allocations, peak, saved_bytes
from dynroute.measure.results import Spread
from dynroute.measure.timing import random_patterns
from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.native.memory import settled
from dynroute.objective import segmentation_loss

SEED = 0
EAGER, EAGER_NHWC = "eager", "eager channels_last"
SHARES = (0.5,)  # of the nodes open, in the routed rows


@dataclass
class StepTimes:
    """One way to take a step.

    Attributes:
        name: what computed; open_nodes: the share of nodes whose gates were open.
        ms: of a step. ratio: this row's time over the first row's, round by round.
        saved_bytes: what autograd keeps for the backward, parameters left out; peak_bytes: the most that torch's
            allocator held at once.
        executed_macs: what the fused kernels counted in a step; 0 for plain PyTorch.
        gflops: what the fused kernels counted with everything open, as operations, over this row's median time, so
            that rows compare; depthwise outputs that the backward makes again are in it, the stem's first convolution
            and the predictor, which are torch's, are not. (torch's own counter takes a depthwise convolution's backward
            for a dense one's.)
    """

    name: str
    open_nodes: float
    ms: Spread
    ratio: Spread
    saved_bytes: int
    peak_bytes: int
    executed_macs: int
    gflops: float | None


@dataclass
class TrainBench:
    """Steps that were timed in turns, and where.

    Attributes:
        peak_gflops: multiply-adds on registers of the chosen instruction set, one thread's times the threads; None
            without the native library.
    """

    model: str
    batch: int
    size: tuple[int, int]
    threads: int
    repeats: int
    seed: int
    peak_gflops: float | None
    results: list[StepTimes]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "kind": "measured"}


def train_bench(
    net: DynamicNetwork, label: str, batch: int, size: tuple[int, int], repeats: int, shares: Sequence[float] = SHARES
) -> TrainBench:
    """Times steps of copies of `net` on noise [batch,I,*size]: forward, segmentation loss, backward.

    With everything open: fused operators, plain PyTorch in channels_last and in NCHW. With a share of the nodes open,
    by seeded random patterns: fused operators that compute everything (`bn="all"`) and that leave closed samples out
    (`bn="open"`).

    Raises:
        ValueError: the fused operators cannot be used here, with the reason.
    """
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(batch, net.config.in_channels, *size, generator=generator)
    labels = torch.randint(0, net.config.num_classes, (batch, *size), generator=generator)
    steps: dict[str, tuple[Callable[[], None], DynamicNetwork, float]] = {}

    def add(name: str, ops: str, share: float = 1.0, bn: str = "all", layout: Any = torch.channels_last) -> None:
        own: Any = copy.deepcopy(net).train().to(memory_format=layout)  # type: ignore[call-overload]
        own.use_ops(ops).bn = bn
        given = images.contiguous(memory_format=layout)
        gates = random_patterns(net.config.layers, share, batch, SEED) if share < 1 else None
        if gates is None:  # everything open, whatever the weights say: the gates are computed all the same
            for gate in own.gates():
                gate.reset_bias()

        def step() -> None:
            own.zero_grad(set_to_none=True)
            segmentation_loss(own, own(given, gates=gates), labels).backward()

        steps[name] = step, own, share

    add("fused", "cpu")
    add(EAGER_NHWC, "reference")
    add(EAGER, "reference", layout=torch.contiguous_format)
    for share in shares:
        add(f"fused, {share:.0%} of the nodes, bn=all", "cpu", share)
        add(f"fused, {share:.0%} of the nodes, bn=open", "cpu", share, "open")
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    facts: dict[str, tuple[int, int, int]] = {}
    total = len(steps) * (repeats + 3)
    with settled(), tqdm(total=total, desc="bench --train", unit="step", delay=2, leave=False) as bar:
        for step, _, _ in steps.values():
            step()
            bar.update()
        for _ in range(repeats):
            for name, (step, _, _) in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
                bar.update()
        # behind the clock: torch's profiler makes every later step of its process slower
        for name, (step, own, _) in steps.items():
            before = library.total_macs()
            saved = saved_bytes(step, own)
            executed = library.total_macs() - before
            facts[name] = saved, peak(allocations(step)), executed
            bar.update(2)
    useful = 2 * facts["fused"][2]
    first = np.array(seconds["fused"])
    rows = []
    for name, (_, _, share) in steps.items():
        taken = np.array(seconds[name])
        rows.append(
            StepTimes(
                name,
                share,
                Spread.of(taken * 1e3),
                Spread.of(taken / first),
                *facts[name],
                gflops=useful / float(np.median(taken)) / 1e9 if share == 1.0 else None,
            )
        )
    return TrainBench(label, batch, size, torch.get_num_threads(), repeats, SEED, _peak_gflops(), rows)


def _peak_gflops() -> float | None:
    if library.why_not_loaded() is not None:
        return None
    isa, iterations = library.build_info()["isa"], 2_000_000
    isa = "avx512" if isa == "amx" else isa
    rates = []
    for _ in range(5):
        start = time.perf_counter()
        operations = torch.ops.dynroute.fma_flops(isa, iterations)
        rates.append(operations / (time.perf_counter() - start) / 1e9)
    return max(rates) * torch.get_num_threads()
