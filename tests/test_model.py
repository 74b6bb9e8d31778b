"""The plain PyTorch model: sizes, per-sample meaning, forced gates, checkpoints."""

import json

import pytest
import torch
from conftest import random_gates, random_images, random_network

import dynroute
from dynroute.models.cell import CELL_OPS
from dynroute.models.layers import ConvNorm
from dynroute.space.wiring import path_exists


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


def test_closed_sample_passes_its_input() -> None:
    node = random_network().rows()[1][0]
    x = torch.randn(2, 8, 16, 16)
    alphas = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    keep = node(x, alphas)[1]
    assert torch.equal(keep[0], x[0]) and not torch.equal(keep[1], x[1])


def test_the_bridge_makes_closing_continuous_in_training_only() -> None:
    node = random_network().rows()[3][1].train()
    x = torch.randn(4, 16, 8, 8)
    sums = torch.tensor([0.0, 0.1, 0.5, 2.0])
    alphas = sums[:, None] * torch.tensor([0.0, 1.0, 0.0])
    plain, bridged = node(x, alphas)[1], node(x, alphas, bridge=1.0)[1]
    for i, share in enumerate((1.0, 0.9, 0.5, 0.0)):
        wanted = x[i] if i == 0 else plain[i] + share * x[i]
        torch.testing.assert_close(bridged[i], wanted)
    node.eval()
    assert torch.equal(node(x, alphas, bridge=1.0)[1], node(x, alphas)[1])


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


@pytest.mark.parametrize(
    "fields", [{"channels": 12}, {"gate": "relu"}, {"num_classes": 0}, {"cell": "conv"}, {"depth": 3}]
)
def test_configuration_errors(fields: dict) -> None:
    with pytest.raises(ValueError, match="wanted"):
        dynroute.create_model("dynamic_tiny", **fields)


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="dynamic_raw_l16"):
        dynroute.create_model("resnet50")
    assert {"dynamic_raw_l16", "dynamic_a_l16", "dynamic_b_l16", "dynamic_c_l16", "dynamic_raw_l33", "fix_l16"} <= set(
        dynroute.list_models()
    )


def test_save_and_load(tmp_path) -> None:
    net = random_network(small_gate=True)
    net.save_pretrained(tmp_path / "model")
    again = dynroute.from_pretrained(tmp_path / "model")
    x = random_images(1, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(x).logits, again(x).logits)
    assert again.config == net.config
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "channels": 16}))
    with pytest.raises(ValueError, match="does not fit"):
        dynroute.from_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        dynroute.from_pretrained(tmp_path)


def test_official_checkpoints_bare_prefixed_and_wrong(tmp_path) -> None:
    from dynroute.models.official import official_names

    net = random_network(num_classes=19)
    names = official_names(net)
    state = {f"module.{names[k]}": v for k, v in net.state_dict().items()}
    path = tmp_path / "official.pth"
    torch.save({"model": state, "optimizer": {"lr": 0.1}}, path)
    x = random_images(1, 32, 32)
    with torch.no_grad():
        assert torch.equal(dynroute.load_official(path)(x).logits, net(x).logits)
    state.popitem()
    with pytest.raises(ValueError, match="1 parameters missing"):
        dynroute.load_official(state)
    with pytest.raises(ValueError, match="not a checkpoint of the published"):
        dynroute.load_official({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no such checkpoint"):
        dynroute.load_official(tmp_path / "none.pth")
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="not a torch checkpoint"):
        dynroute.load_official(path)
