"""A whole training step on CUDA's operators, by the emulator: the CPU's, within rounding."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from dynroute.models.network import DynamicNetwork
from dynroute.native import library
from dynroute.runtime.cuda import emulator
from tests.support.cuda.training import emulated_operators
from tests.support.networks import random_network
from tests.support.steps import check_same, step

REASON = library.why_not_loaded() or emulator.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def on_emulator(net: DynamicNetwork, launches: list | None = None, **options: Any) -> dict[str, Tensor]:
    dtype = options.pop("maps", torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word on kernels that are replaced
        with emulated_operators(launches, dtype):
            return step(net, "cuda", **options)


def test_equals_the_cpus() -> None:
    """Losses, every gradient and every running statistic, within float32's rounding; and what was launched."""
    net = random_network(channels=16, layers=4).train()
    launches: list[Any] = []
    wanted, got = step(net, "cpu"), on_emulator(net, launches)
    assert check_same(got, wanted) <= 1e-5  # as a whole far closer than any of them by itself
    of_kernels = Counter(kernel for kernel, _ in launches)
    assert of_kernels["train_hidden"] == of_kernels["train_alphas"] == 14  # a node each
    assert of_kernels["upsampled_loss"] == 1


def test_skipping_and_drop_path() -> None:
    """Closed samples left out, a residual scaled by sample, the small gate."""
    net = random_network(channels=16, layers=4, drop_prob=0.4, gate_shift=-0.4, small_gate=True).train()
    net.bn = "open"
    wanted, got = step(net, "cpu", 128), on_emulator(net, side=128)
    check_same(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mixed_precision(dtype: torch.dtype) -> None:
    """Maps of 16 bits, the rest float32: at most twice as far from float64 as plain PyTorch under autocast."""
    net = random_network(3, channels=16, layers=4).train()  # no gate so near to closing that rounding decides
    exact = step(copy.deepcopy(net).double(), "reference", 64)
    plain, got = step(net, "reference", 64, dtype), on_emulator(net, maps=dtype, side=64, lowered=dtype)

    def off(values: dict[str, Tensor]) -> float:
        wrong = sum(((values[n].double() - v) ** 2).sum() / (v**2).sum().clamp_min(1e-12) for n, v in exact.items())
        return float((wrong / len(exact)).sqrt())

    assert off(got) <= 2 * off(plain), (off(got), off(plain))
