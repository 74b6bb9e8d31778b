"""The plain PyTorch model: sizes, per-sample meaning, forced gates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import dynroute
from dynroute.models.cell import CELL_OPS
from dynroute.models.layers import ConvNorm
from dynroute.space.wiring import path_exists
from tests.support.networks import random_gates, random_images, random_network


@pytest.mark.parametrize("size", [(32, 32), (1, 1), (33, 65), (100, 70)])
@pytest.mark.parametrize("small_gate", [False, True])
def test_any_size_and_any_batch(size: tuple[int, int], small_gate: bool) -> None:
    net = random_network(small_gate=small_gate)
    for n in (0, 1, 2):
        with torch.no_grad():
            out = net(random_images(n, *size))
        assert out.logits.shape == (n, 5, *size) and out.gates.shape == (n, 7, 4, 3)
        assert out.expected_mflops.shape == out.real_mflops.shape == (n,)


def test_padding_is_zeros_right_and_bottom() -> None:
    net = random_network()
    x = random_images(1, 50, 40)
    padded = torch.zeros(1, 3, 64, 64)
    padded[..., :50, :40] = x
    with torch.no_grad():
        torch.testing.assert_close(net(x).logits, net(padded).logits[..., :50, :40])


@pytest.mark.parametrize("size", [(64, 96), (50, 70)])
def test_logits_are_the_low_ones_upsampled(size: tuple[int, int]) -> None:
    """In evaluation they are there when the forward pass is; in training when they are first read, and kept."""
    net = random_network()
    with torch.no_grad():
        for training in (False, True):
            out = net.train(training)(random_images(2, *size))
            assert out.low_logits.shape == (2, 5, *(-(-side // 32) * 8 for side in size))
            assert ("logits" in vars(out)) != training
            full = F.interpolate(out.low_logits, scale_factor=4, mode="bilinear", align_corners=False)
            assert torch.equal(out.logits, full[..., : size[0], : size[1]]) and out.logits is out.logits


@pytest.mark.parametrize("gate", ["tanh", "sigmoid", "softmax", "fixed"])
def test_gates_and_cells_train(gate: str) -> None:
    net = random_network(gate=gate).train()
    losses = dynroute.objective(net, random_images(2, 64, 64), torch.randint(0, 5, (2, 64, 64)), 0.5)
    losses["segmentation"].backward()
    gates = losses.output.gates
    exists = path_exists(6)
    assert (gates[:, ~exists] == 0).all()
    if gate == "fixed":
        assert (gates[:, exists] == 1).all() and not net.gate_parameters()
    if gate == "softmax":
        torch.testing.assert_close(gates.sum(-1)[:, exists.any(-1)], torch.ones(2, int(exists.any(-1).sum())))
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("cell", sorted(CELL_OPS))
def test_every_cell_of_the_study_runs_and_is_priced(cell: str) -> None:
    net = random_network(cell=cell, layers=4)
    with torch.no_grad():
        assert net(random_images(1, 32, 32)).logits.isfinite().all()
    macs = sum(
        m.weight.numel() * 64 + (2 + m.relu) * m.out_channels * 64 if isinstance(m, ConvNorm) else m.weight.numel() * 64
        for m in net.rows()[1][0].cell.modules()
        if isinstance(m, torch.nn.Conv2d)
    )
    assert float(net.costs(32, 32).cell[1, 0]) == pytest.approx(macs * 1e-6)


def test_a_batch_in_evaluation_is_its_samples() -> None:
    net = random_network(gate_shift=-0.5)
    x = random_images(4, 64, 64)
    with torch.no_grad():
        out, alone = net(x), [net(x[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(out.logits, torch.cat([a.logits for a in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(out.gates, torch.cat([a.gates for a in alone]), rtol=1e-5, atol=1e-6)


def test_absent_nodes_have_no_alphas_in_evaluation_only() -> None:
    net = random_network()
    gates = torch.zeros(1, 7, 4, 3)
    gates[:, 0, 0, 1] = 0.7  # the init cell only keeps: scale 1 never gets anything
    gates[:, 1:] = 0.5
    gates[:, 1:, 0, 2] = 0.0
    x = random_images(1, 64, 64)
    with torch.no_grad():
        out = net(x, gates=gates)
    # down is 0 but its open source is present all the same (SPEC, per-sample meaning): scale 1 appears one layer later
    assert (out.gates[0, 1, 1] == 0).sum() == 0
    gates[:, 0] = 0.0  # a closed init cell passes X through keep and nothing down
    with torch.no_grad():
        out = net(x, gates=gates)
    assert (out.gates[0, 1, 1] == 0).all() and (out.gates[0, 2, 1, 1] > 0).all()
    net.train()
    assert (net(x, gates=gates).gates[0, 1, 1, 1] > 0).all()


def test_forced_gates_broadcast_and_ignore_missing_paths() -> None:
    net = random_network()
    x = random_images(2, 32, 32)
    gates = random_gates(net, 1, 0.8)[0] + 0.1
    with torch.no_grad():
        out = net(x, gates=gates)
        again = net(x, gates=gates.expand(2, -1, -1, -1))
    assert torch.equal(out.logits, again.logits)
    assert (out.gates[:, ~path_exists(6)] == 0).all()


def test_drop_path_scales_with_depth_and_progress() -> None:
    net = random_network(drop_prob=0.4).train()
    assert net._keep_prob(0, 1.0) == 1.0
    assert net._keep_prob(6, 1.0) == pytest.approx(0.6)
    assert net._keep_prob(3, 0.5) == pytest.approx(1 - 0.5 * 3 / 6 * 0.4)
    net.eval()
    assert net._keep_prob(6, 1.0) == 1.0


@pytest.mark.parametrize(
    "images, gates, message",
    [
        (torch.zeros(1, 4, 32, 32), None, "images: wanted"),
        (torch.zeros(3, 32, 32), None, "images: wanted"),
        (torch.zeros(1, 3, 0, 32), None, "images: wanted"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), None, "images: wanted"),
        (torch.zeros(1, 3, 32, 32), torch.zeros(2, 7, 4, 3), "gates: wanted"),
    ],
)
def test_input_errors(images: torch.Tensor, gates: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_network()(images, gates)
