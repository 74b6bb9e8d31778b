"""NaN in an image is seen in the logits: a gate that is NaN closes nothing."""

from __future__ import annotations

import pytest
import torch

import dynroute
from dynroute.native import library
from tests.support.isa import other_isas
from tests.support.nans import check_infinity_is_the_models, check_nan_stays
from tests.support.networks import random_network
from tests.support.processes import python

needs_library = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
WAYS = [("reference", torch.float32), ("cpu", torch.float32), ("cpu", torch.bfloat16)]


@pytest.mark.parametrize("backend, storage", WAYS, ids=str)
@pytest.mark.parametrize("gate", ["tanh", "sigmoid", "softmax"])
def test_nan(backend: str, storage: torch.dtype, gate: str) -> None:
    net = random_network(layers=4, gate=gate, gate_shift=-0.3)
    check_nan_stays(dynroute.optimize(net, backend, storage), net)


@needs_library
@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "config, side", [({"small_gate": True}, 128), ({"cell": "sepconv3", "channels": 24}, 64)], ids=str
)
def test_nan_in_other_networks(config: dict, side: int, storage: torch.dtype) -> None:
    net = random_network(layers=4, gate_shift=-0.3, **config)
    check_nan_stays(dynroute.optimize(net, "cpu", storage), net, 2, side)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_infinity(backend: str) -> None:
    net = random_network(layers=4, gate_shift=-0.3)
    check_infinity_is_the_models(dynroute.optimize(net, backend), net)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_forced_alphas_that_are_nan(backend: str) -> None:
    """One path's alpha of one node: the node is open, and so is the path."""
    net = random_network(layers=4)
    run = dynroute.optimize(net, backend)
    gates = torch.zeros(5, 4, 3)
    gates[:, 0, 1] = 1.0  # everything stays at scale 0
    gates[1, 0, 1] = torch.nan
    out = run(torch.zeros(1, 3, 32, 32), gates)
    assert out.logits.isnan().all() and (out.executed_nodes[0, :, 0, 1] > 0).all()


SCRIPT = """
import torch, dynroute
from tests.support.nans import check_nan_stays
from tests.support.networks import random_network
for storage in (torch.float32, torch.bfloat16):
    net = random_network(layers=4, gate_shift=-0.3, channels=16)
    check_nan_stays(dynroute.optimize(net, "cpu", storage), net)
"""


@needs_library
@pytest.mark.parametrize("isa", other_isas())
def test_instruction_sets(isa: str) -> None:
    ran = python("-c", SCRIPT, DYNROUTE_CPU_ISA=isa)
    assert ran.returncode == 0, ran.stderr[-2000:]
