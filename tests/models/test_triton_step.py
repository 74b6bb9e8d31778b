"""A whole training step on Triton's operators, on a GPU or interpreted: the CPU's, within rounding."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from dynroute.native import library
from tests.support.networks import random_network
from tests.support.steps import check_same, step

REASON = library.why_not_loaded() or (None if find_spec("triton") else "triton is not installed")
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def test_equals_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses, every gradient and every running statistic: samples left out, a budget."""
    from dynroute.ops.triton import configs

    net = random_network(channels=8, layers=4, gate_shift=-0.4).train()
    net.bn = "open"
    wanted = step(net, "cpu")
    if not torch.cuda.is_available():  # the interpreter takes its time for each program, whatever its size
        monkeypatch.setattr(configs, "find", lambda *key: configs.Cut(256, 64, 64))
    got = step(net, "triton", device="cuda" if torch.cuda.is_available() else "cpu")
    assert check_same(got, wanted, 2e-3) <= 1e-5  # as a whole far closer than any of them by itself
