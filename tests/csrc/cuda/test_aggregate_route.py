"""init_call and aggregate_route, emulated: X, gates, routing tables, counts, held to the rules in `routed.py`."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from dynroute import ops
from dynroute.native import library as native
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES
from dynroute.space.wiring import build_space
from tests.support.cuda import routed
from tests.support.cuda.devices import SMALL
from tests.support.cuda.routed import NODE, PATHS, SCALES, Space, first_row, path_exists, scales_of_row
from tests.support.cuda.shapes import launch_shape, library

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))

EPS = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}
X_EPS = {**EPS, torch.float16: 2**-9}  # float16's sums are rounded at each step


def tasks_of(space: Space) -> list[int]:
    more = """extern "C" int tasks(int h, int w, int c, int type) {
      return aggregate_tiling({h, w, c}, DType(type)).tasks;
    }"""
    return [library("aggregate_route", more).tasks(*x, DTYPES.index(space.dtype)) for x in space.shapes]


def random_gates(n: int, rows: int, seed: int = 0, share: float = 0.7) -> np.ndarray:
    """Closed nodes and paths, keep alone at exactly 1, sums around the threshold; NaN where no path is."""
    rng = np.random.default_rng(seed)
    gates = rng.random((n, rows, SCALES, PATHS)) * (rng.random((n, rows, SCALES, PATHS)) < share)
    gates *= rng.random((n, rows, SCALES, 1)) < 0.75
    kind = rng.random((n, rows, SCALES, 1))
    gates = np.where(kind < 0.15, np.array([0.0, 1.0, 0.0]), gates)
    gates = np.where((kind > 0.15) & (kind < 0.25), np.array([4e-5, 5e-5, 0.0]), gates)
    gates = np.where((kind > 0.25) & (kind < 0.35), np.array([1e-4, 9e-5, 2e-4]), gates).astype(np.float32)
    for row in range(rows):
        for s in range(SCALES):
            for path in range(PATHS):
                if not path_exists(row, rows, s, path):
                    gates[:, row, s, path] = np.nan
    return gates


def check_row(space: Space, row: int, nodes, before, tasks: list[int]):
    """X where it has to be and nowhere else; alphas; executed multiply-accumulates; returns the next row's nodes."""
    following = []
    for i in range(space.n):
        macs = np.zeros((SCALES, 5), np.int64)
        for s in range(SCALES):
            node, maps = nodes[i][s], [m[i] for m in space.maps[s]]
            stored = node.present and not node.aliased
            for which in range(2):
                if stored and which == node.x_map:
                    continue
                assert torch.equal(maps[which].nan_to_num(7), before[s][which][i].nan_to_num(7)), (i, s, which)
            alpha = space.alphas[i, row, s]
            if not node.present:
                assert not alpha.any(), (i, s)
                continue
            x = maps[node.x_map].double()
            if stored:
                want = space.x(i, s, node)
                error = (x - want).abs().max() / want.abs().max().clamp(min=1e-30)
                assert error <= X_EPS[space.dtype], (i, s, error)
            exist = [path_exists(row, space.rows, s, p) for p in range(PATHS)]
            assert not alpha[np.logical_not(exist)].any()
            if space.gates is not None or space.activation == "fixed":
                want = 1 if space.gates is None else space.gates[i, row, s]
                assert (alpha == np.where(exist, want, 0)).all()
                continue
            gate = space.gate_weights[row, s]
            want = gate(x, space.activation, space.small).numpy()
            order = [p for p in (routed.KEEP, routed.UP, routed.DOWN) if exist[p]]
            # X' is rounded once more where it is averaged
            limit = 20 * EPS[space.dtype] if space.small and space.dtype != torch.float32 else 2e-5
            assert np.abs(alpha[order] - want).max() <= limit, (i, s, alpha, want)
            h, w, c = space.shapes[s]
            pixels = (h // 4) * (w // 4) if space.small else h * w
            macs[s, 0] = pixels * c * (c // 2) + (c // 2) * len(order)
        assert (space.node_macs[i, row] == macs).all(), i
        following.append(routed.route(nodes[i], space.alphas[i, row], row, space.rows))
    routed.check_tables(space, row, nodes, following)
    return following


def run(space: Space, gates=None, rows=None, blocks=None, **options):
    """init_call, then rows of aggregate_route, each checked. Returns what the last launch counted."""
    space.init_call(gates, **{k: v for k, v in options.items() if k in ("order", "seed")})
    tasks = tasks_of(space)
    nodes = [first_row() for _ in range(space.n)]
    routed.check_present(space, 0, nodes)
    stats = None
    for row in range(space.rows if rows is None else rows):
        before = [[m.clone() for m in pair] for pair in space.maps]
        stats = space.aggregate_route(row, tasks, blocks, **options)
        following = check_row(space, row, nodes, before, tasks)
        space.run_cells(row, nodes)
        nodes = following
    return stats


def test_init_call_clears_everything():
    space = Space(3, 8, 8, 8, torch.float32, rows=9)
    space.init_call(global_races=True, order="rand")
    assert (
        not space.alphas.any()
        and not space.node_macs.any()
        and not space.sample_macs.any()
        and not space.counters.any()
    )
    for row in range(9):
        counts = space.counts[row].copy()
        assert counts[0, 0] == (3 if row == 0 else 0)
        counts[0, 0] = 0
        assert not counts.any()
    assert space.samples[0][0, 0].tolist() == [0, 1, 2]
    value = np.frombuffer(space.io, np.uint64)
    assert value.tolist() == [0, 0, 0, 0, *(x.ctypes.data for x in (space.alphas, space.node_macs, space.sample_macs))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("small", (False, True), ids=("full", "small"))
def test_random_gates_decide(dtype, small):
    run(Space(4, 32, 40, 16, dtype, small=small, seed=1), order="rand")


@pytest.mark.parametrize("activation", ("sigmoid", "softmax"))
def test_activations(activation):
    run(Space(2, 16, 24, 8, torch.float16, activation=activation), rows=3, order="rev")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forced_alphas(dtype):
    """No gate is computed, aliased nodes have nothing to do, and no block reads what another writes."""
    run(Space(5, 16, 24, 8, dtype, seed=2), random_gates(5, 5), global_races=True, order="rand")


@pytest.mark.skipif(native.why_not_loaded() is not None, reason=str(native.why_not_loaded()))
def test_x_has_the_bits_of_the_cpu():
    space, rows = Space(2, 16, 24, 8, torch.float32, seed=9), 4
    gates = np.random.default_rng(9).random((2, 5, SCALES, PATHS)).astype(np.float32)
    space.init_call(gates)
    nodes = [first_row(), first_row()]
    for row in range(rows):
        space.aggregate_route(row, tasks_of(space))
        if row == rows - 1:
            break
        following = [routed.route(nodes[i], space.alphas[i, row], row, 5) for i in range(2)]
        space.run_cells(row, nodes)
        nodes = following
    planes = lambda x: x[None].permute(0, 3, 1, 2)  # noqa: E731
    for i in range(2):
        for s, node in enumerate(nodes[i]):
            assert node.keep != 0 or s == SCALES - 1
            down = planes(space.down(s - 1)[i]) if node.down != 0 else None
            keep = planes(space.maps[s][1 - node.x_map][i]) if node.keep != 0 else None
            up = planes(space.up(s + 1)[i]) if node.up != 0 else None
            want = ops.aggregate(down, keep, up, torch.tensor([[node.up, node.keep, node.down]]), backend="cpu")
            assert torch.equal(planes(space.maps[s][node.x_map][i]), want), (i, s)


def test_fixed_gates_open_the_whole_space():
    layers = 5
    space = Space(1, 8, 8, 8, torch.float32, rows=layers + 1, activation="fixed")
    run(space)
    for row, nodes in enumerate(build_space(layers)):
        table = space.view(row)[0]
        assert table["present"].tolist() == [int(s < len(nodes)) for s in range(SCALES)]
        for node in nodes:
            got = table[node.scale]
            assert (got["weight"] != 0).tolist() == list(node.paths)
            if row > 0:
                assert tuple(bool(got[x] != 0) for x in ("up", "keep", "down")) == node.sources


@pytest.mark.parametrize("n", (1, 32, 37))
def test_many_samples_are_listed_in_order(n):
    run(Space(n, 8, 8, 8, torch.float32, seed=n), random_gates(n, 5, seed=n), order="rand")


def test_all_closed_and_all_absent():
    space = Space(3, 16, 16, 8, torch.float16)
    gates = np.zeros((3, 5, SCALES, PATHS), np.float32)
    gates[1] = 0.5
    run(space, gates)
    assert space.view(4)["present"].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    # a closed keep of a closed keep is still the stem's map
    assert space.view(4)[0, 0]["x_map"] == 0 and space.view(4)[0, 0]["aliased"]


@pytest.mark.parametrize("shape_", ((13, 21, 16), (9, 70, 8), (17, 16, 72)), ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_odd_shapes(shape_, dtype):
    run(Space(2, *shape_, dtype, seed=3), random_gates(2, 5, share=1), rows=4)
    run(Space(1, *shape_, dtype, seed=3), rows=2, order="rev")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("small", (False, True), ids=("full", "small"))
def test_runs_of_tiles(dtype, small):
    """Large maps: the largest tiles, and tasks of several."""
    run(Space(1, 184, 186, 8, dtype, small=small, seed=6), rows=2, order="rand")


@pytest.mark.parametrize("small", (False, True), ids=("full", "small"))
def test_weights_longer_than_the_ring(small):
    run(Space(1, 64, 130, 136, torch.float16, small=small, seed=7), rows=1)


def test_small_gate_of_more_tiles_than_a_holds():
    run(Space(1, 728, 744, 8, torch.float16, small=True, seed=8), rows=1)


def test_no_races_in_global_memory_within_a_block():
    """With more blocks, only forced alphas pass (above): what the last block reads of others' is ordered by fences and
    atomics, which the check does not know."""
    run(Space(2, 16, 24, 8, torch.float16, seed=5), rows=3, blocks=1, global_races=True, order="rand")


def test_one_pixel():
    run(Space(2, 1, 1, 8, torch.float16), rows=1)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_batch_never_changes_a_sample(dtype):
    together = Space(3, 24, 32, 8, dtype, small=False, seed=4)
    run(together, rows=1, order="rand")
    for i in range(3):
        alone = Space(1, 24, 32, 8, dtype, seed=4)
        alone.gate_weights = together.gate_weights
        alone.maps[0][0].copy_(together.maps[0][0][i : i + 1])
        run(alone, rows=1, blocks=1)
        assert (alone.alphas[0, 0] == together.alphas[i, 0]).all()


def test_blocks_beyond_the_work_and_few_blocks():
    for blocks in (1, 2, 40):
        run(Space(2, 16, 24, 8, torch.bfloat16, seed=5), rows=3, blocks=blocks, order="rand")


def test_launch_shape():
    space = Space(1, 8, 8, 64, torch.float16)
    params, _ = space.params(4, [1] * SCALES)
    for s, (h, w) in enumerate(((256, 512), (128, 256), (64, 128), (32, 64))):
        params.maps[s].shape.h, params.maps[s].shape.w = h, w
    blocks, threads, shared = launch_shape("aggregate_route", params, torch.float16)
    assert (blocks, threads) == (528, 128) and shared <= 56 << 10
    assert launch_shape("aggregate_route", params, torch.float16, SMALL)[2] <= 99 << 10
    params.n = 0
    assert launch_shape("aggregate_route", params, torch.float16)[0] == 1
    assert ctypes.sizeof(routed.structs.Node) == NODE.itemsize and scales_of_row(0) == 1
