"""The runtime's results are the model's, and the work executed is what the gates say."""

from __future__ import annotations

import pytest
import torch

import dynroute
from dynroute.models.network import DynamicNetwork
from dynroute.space.wiring import DOWN, KEEP, UP, build_space, path_exists
from tests.support.backends import BACKENDS, SHAPES
from tests.support.networks import random_gates, random_images, random_network


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", SHAPES, ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_agrees_with_the_model(config: dict, backend: str) -> None:
    net = random_network(gate_shift=-0.3, **config)
    x = random_images(3, 70, 97, channels=net.config.in_channels)
    with torch.no_grad():
        wanted = net(x)
    got = dynroute.optimize(net, backend)(x)
    scale = wanted.logits.abs().max()
    torch.testing.assert_close(got.logits / scale, wanted.logits / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.gates, wanted.gates, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.expected_mflops, wanted.expected_mflops, rtol=1e-4, atol=1e-4)
    assert got.logits.shape == (3, net.config.num_classes, 70, 97)


def present_nodes(gates: torch.Tensor, layers: int) -> torch.Tensor:
    """[L+1,4] by the rule of SPEC's per-sample meaning, from one sample's alphas [L+1,4,3]."""
    closed = gates.sum(-1) < 1e-4
    present = torch.zeros(layers + 1, 4, dtype=torch.bool)
    present[0, 0] = True
    for row in build_space(layers)[1:]:
        for node in row:
            r, s = node.row, node.scale
            present[r, s] = (
                (node.sources[DOWN] and present[r - 1, s - 1] and not closed[r - 1, s - 1])
                or (node.sources[KEEP] and present[r - 1, s])
                or (node.sources[UP] and present[r - 1, s + 1] and not closed[r - 1, s + 1])
            )
    return present


def work_by_hand(net: DynamicNetwork, gates: torch.Tensor, h: int, w: int, forced: bool) -> torch.Tensor:
    """int64 [L+1,4,5] of one sample: gate, cell, up, keep, down, from its alphas alone."""
    c = net.config
    work = torch.zeros(c.layers + 1, 4, 5, dtype=torch.int64)
    present = present_nodes(gates, c.layers)
    stages = {"sepconv": 2, "sepconv1": 1, "sepconv3": 3}[c.cell[0]]
    for row in build_space(c.layers):
        for node in row:
            r, s = node.row, node.scale
            if not present[r, s]:
                continue
            ch, pixels = c.channels << s, (h >> (s + 2)) * (w >> (s + 2))
            if not forced and c.gate != "fixed":
                at = (h >> (s + 4)) * (w >> (s + 4)) if c.small_gate else pixels
                work[r, s, 0] = at * ch * (ch // 2) + ch // 2 * sum(node.paths)
            alphas = gates[r, s]
            if alphas.sum() < 1e-4:
                continue
            work[r, s, 1] = stages * pixels * (9 * ch + ch * ch)
            if node.paths[UP] and alphas[UP] > 1e-4:
                work[r, s, 2] = pixels * ch * (ch // 2)
            if node.paths[DOWN] and alphas[DOWN] > 1e-4:
                work[r, s, 4] = pixels // 4 * ch * 2 * ch
    return work


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("forced", [False, True], ids=["own gates", "forced"])
@pytest.mark.parametrize("config", SHAPES[:2] + SHAPES[5:], ids=lambda c: "-".join(map(str, c.values())) or "default")
def test_executed_work_is_what_the_gates_say(config: dict, forced: bool, backend: str) -> None:
    net = random_network(gate_shift=-0.6, **config)
    x = random_images(4, 128, 160, channels=net.config.in_channels)
    gates = random_gates(net, 4, 0.5) if forced else None
    out = dynroute.optimize(net, backend)(x, gates)
    c = net.config
    for i in range(4):
        assert torch.equal(out.executed_nodes[i], work_by_hand(net, out.gates[i], 128, 160, forced))
    stem = 63 * 79 * c.stem_width * (9 * c.in_channels + 9 + c.stem_width) + 32 * 40 * c.stem_width * (9 + c.channels)
    decoder = 32 * 40 * c.channels * 9 * c.num_classes
    for s in range(4):
        decoder += (32 >> s) * (40 >> s) * (c.channels << s) * (c.channels << max(s - 1, 0))
    assert torch.equal(out.executed_macs, out.executed_nodes.sum((1, 2, 3)) + stem + decoder)
    init_cell = out.executed_nodes[:, 0, 0, 1]
    parts = out.executed_nodes.sum((1, 2))
    assert torch.equal(out.space_macs, parts[:, 1:].sum(1) - init_cell)
    assert len(set(out.executed_macs.tolist())) > 1, "the samples should have differed"
    assert (out.halo_macs >= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("small_gate", [False, True])
def test_cpu_agrees_with_reference_on_random_patterns(share: float, small_gate: bool) -> None:
    net = random_network(channels=16, small_gate=small_gate)
    x, gates = random_images(5, 128, 128), random_gates(net, 5, share, seed=int(share * 10))
    a, b = (dynroute.optimize(net, backend)(x, gates) for backend in BACKENDS)
    scale = a.logits.abs().max()
    torch.testing.assert_close(b.logits / scale, a.logits / scale, rtol=0, atol=1e-5)
    assert torch.equal(a.gates, b.gates)
    assert torch.equal(a.executed_nodes, b.executed_nodes) and torch.equal(a.executed_macs, b.executed_macs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_alphas_around_the_threshold(backend: str) -> None:
    """A path is closed at alpha <= 1e-4, a sample below a sum of 1e-4: three tiny paths make an open node of none."""
    net = random_network()
    g = torch.Generator().manual_seed(3)
    levels = torch.tensor([0.0, 0.2e-4, 0.6e-4, 1e-4, 1.5e-4, 0.5, 0.9])
    gates = levels[torch.randint(0, len(levels), (4, 7, 4, 3), generator=g)]
    x = random_images(4, 64, 64)
    with torch.no_grad():
        wanted = net(x, gates)
    got = dynroute.optimize(net, backend)(x, gates)
    scale = wanted.logits.abs().max()
    torch.testing.assert_close(got.logits / scale, wanted.logits / scale, rtol=0, atol=1e-5)
    assert torch.equal(got.gates, wanted.gates) and torch.equal(got.real_mflops, wanted.real_mflops)
    for i in range(4):
        assert torch.equal(got.executed_nodes[i], work_by_hand(net, got.gates[i], 64, 64, forced=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_nodes_closed_for_all_are_never_read(backend: str) -> None:
    net = random_network(layers=8, gate_shift=-0.8)
    x = random_images(3, 64, 96)
    before = dynroute.optimize(net, backend)(x)
    alphas = before.gates
    closed_cells = (alphas.sum(-1) < 1e-4).all(0)
    closed_paths = (alphas <= 1e-4).all(0) & path_exists(8)
    poisoned = 0
    for members in net.rows():
        for node in members:
            r, s = node.node.row, node.node.scale
            if closed_cells[r, s]:
                for p in node.cell.parameters():
                    p.data.fill_(float("nan"))
                poisoned += 1
            for path, name in ((UP, "up"), (DOWN, "down")):
                if node.node.paths[path] and closed_paths[r, s, path]:
                    for p in getattr(node, name).parameters():
                        p.data.fill_(float("nan"))
                    poisoned += 1
    assert poisoned > 10
    after = dynroute.optimize(net, backend)(x)
    assert torch.equal(after.logits, before.logits) and after.logits.isfinite().all()


def test_a_tile_left_out_changes_the_count() -> None:
    run = dynroute.optimize(random_network(channels=16), "cpu")
    x = random_images(1, 64, 64)
    gates = run.all_open_gates()
    full = run(x, gates)
    torch.ops.dynroute.debug_skip_tile(0)
    try:
        short = run(x, gates)
    finally:
        torch.ops.dynroute.debug_skip_tile(-1)
    assert int(short.executed_macs) < int(full.executed_macs)
    assert torch.equal(run(x, gates).executed_macs, full.executed_macs)
