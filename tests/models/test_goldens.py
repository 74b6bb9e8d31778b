"""The published implementation's results, reproduced by the model (see goldens/seeded.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dynroute
from dynroute.models import fused
from tests.support.goldens import CASES, EVAL, TRAIN, check_eval, load


@pytest.mark.parametrize("path", [c for c, _ in EVAL], ids=[i for _, i in EVAL])
@pytest.mark.parametrize("batched", [True, False], ids=["batch", "alone"])
def test_evaluation(path: Path, batched: bool) -> None:
    info, golden, net, (images, _) = load(path)
    if batched:
        with torch.no_grad():
            check_eval(net(images), golden)
        return
    for n in range(info["batch"]):
        with torch.no_grad():
            out = net(images[n : n + 1])
        check_eval(out, {k: golden[k] if k == "stride" else golden[k][n : n + 1] for k in golden.files})


@pytest.mark.parametrize("path", [c for c, _ in TRAIN], ids=[i for _, i in TRAIN])
@pytest.mark.parametrize("ops", ["reference", "cpu"])
def test_training_step(path: Path, ops: str) -> None:
    reason = fused.why_not(ops)
    if reason is not None:
        pytest.skip(reason)
    info, golden, net, (images, labels) = load(path)
    net.train().use_ops(ops)
    b = info["budget"]
    budget = dynroute.Budget(b["LOSS_WEIGHT"], b["LOSS_MU"], b["FLOPS_ALL"])
    losses = dynroute.objective(net, images, labels, progress=0.41, budget=budget)
    sum(losses.values()).backward()
    assert losses["segmentation"].item() == pytest.approx(float(golden["loss_sem_seg"]), rel=1e-5)
    assert losses["budget"].item() == pytest.approx(float(golden["loss_budget"]), rel=1e-5)
    out = losses.output
    assert out.expected_mflops.mean().item() == pytest.approx(float(golden["expected_mflops"]), rel=1e-5)
    assert out.real_mflops.mean().item() == pytest.approx(float(golden["real_mflops"]), rel=1e-5)

    names = {theirs: ours for ours, theirs in dynroute.models.official.official_names(net).items()}
    grads = dict(net.named_parameters())
    assert len(golden["grad_names"]) == len(grads)
    for name, norm, probe in zip(golden["grad_names"], golden["grad_norms"], golden["grad_probe"]):
        grad = grads[names[str(name)]].grad
        assert grad is not None, name
        ramp = torch.linspace(-1, 1, grad.numel(), dtype=torch.float64)
        assert grad.double().norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6), name
        assert (grad.double().flatten() * ramp).sum().item() == pytest.approx(probe, rel=1e-3, abs=1e-6), name

    state = net.state_dict()
    running = sorted(theirs for theirs, ours in names.items() if "running" in theirs)
    got = np.array([state[names[k]].double().sum().item() for k in running])
    np.testing.assert_allclose(got, golden["running"], rtol=1e-4, atol=1e-6)


def test_official_names_are_the_published_ones() -> None:
    for path in CASES:
        info, _, net, _ = load(path)
        published = {k for k in info["shapes"] if not k.endswith("gate_weights_beta")}
        assert set(dynroute.models.official.official_names(net).values()) == published
