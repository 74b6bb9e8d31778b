"""csrc/cuda/kernels/stage_paths.cu on the emulator: the last stage of staged cells, and the paths that wait for it."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES
from tests.support.cuda import structs
from tests.support.cuda.buffers import Buffers, assert_close, poisoned
from tests.support.cuda.devices import A100, H100, ONE
from tests.support.cuda.matrices import StageWeights, is_close
from tests.support.cuda.shapes import launch_shape
from tests.support.cuda.structs import (
    DOWN,
    DOWN_OPEN,
    KEEP,
    LISTS,
    OPEN,
    SCALES,
    UP,
    UP_OPEN,
    Io,
    MapShape,
    Matrix,
    Node,
    Row,
    ScaleMaps,
    StagePathsParams,
)

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
ROWS, ROW = 5, 3
PATHS_OF_LIST = {OPEN: (UP, KEEP, DOWN), UP_OPEN: (UP,), DOWN_OPEN: (DOWN,)}  # a sample is listed where one of them is


class Case:
    """Random maps and weights of a network with `c` base channels whose scale 0 is h x w. Scales in `staged` have their
    last stage before them, between -> H with X added; of the others H is there."""

    def __init__(
        self, n: int, c: int, h: int, w: int, dtype: torch.dtype, scales: int = SCALES, staged: tuple[int, ...] = ()
    ) -> None:
        g = torch.Generator().manual_seed(n + c + h)
        torch.manual_seed(n + c + h)
        self.n, self.dtype, self.scales = n, dtype, scales
        self.shapes = [(h >> s, w >> s, c << s) for s in range(scales)]
        self.stages = {s: StageWeights(c << s, c << s, dtype) for s in staged}
        self.x, self.between = ([torch.randn(n, *shape, generator=g).to(dtype) for shape in self.shapes] for _ in "ab")
        self.maps = [x.relu() for x in self.x]
        self.weights: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for s, (_, _, c_s) in enumerate(self.shapes):
            for path, c_out, there in ((UP, c_s // 2, s > 0), (DOWN, 2 * c_s, s < scales - 1)):
                if there:
                    weight = (torch.randn(c_out, c_s, generator=g) / c_s**0.5).to(dtype)
                    self.weights[s, path] = weight, torch.randn(c_out, generator=g)
        self.out_map = [[(i + s) % 2 for s in range(SCALES)] for i in range(n)]

    def run(self, opened, samples=None, device=ONE, **options):
        """opened(sample, scale, path) -> bool. Returns maps and halves per scale, counts [n, ROWS, 4, 5] and
        statistics."""
        samples = list(range(self.n)) if samples is None else samples
        n, b = len(samples), Buffers()
        nodes = (Node * (n * SCALES))()
        counts = torch.zeros(LISTS, SCALES, dtype=torch.int32)
        lists = torch.full((LISTS, SCALES, n), -1, dtype=torch.int32)
        for s in range(self.scales):
            for i, sample in enumerate(samples):
                node = nodes[i * SCALES + s]
                node.out_map, node.x_map = self.out_map[sample][s], 1 - self.out_map[sample][s]
                for at, paths in PATHS_OF_LIST.items():
                    if any(opened(sample, s, path) for path in paths):
                        lists[at, s, counts[at, s]] = i
                        counts[at, s] += 1
        macs = torch.zeros(n, ROWS, SCALES, 5, dtype=torch.int64)
        finished, ticket = torch.zeros(n, SCALES, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        params = StagePathsParams(finished=b.write(finished), ticket=b.write(ticket))
        cells = params.cells
        cells.n, cells.row_index, cells.rows = n, ROW, ROWS
        cells.io = b.struct(Io(node_macs=b.write(macs)))
        cells.row = Row(b.struct(nodes), b.read(counts), b.read(lists))
        maps, halves = [], []
        for s, (h, w, c) in enumerate(self.shapes):
            maps.append([poisoned(n, h, w, c, dtype=self.dtype) for _ in range(2)])
            halves.append(poisoned(n, h * w * c, dtype=self.dtype))
            for i, sample in enumerate(samples):
                if s in self.stages:
                    maps[s][1 - self.out_map[sample][s]][i] = self.x[s][sample]
                    halves[s][i] = self.between[s][sample].flatten()
                else:
                    maps[s][self.out_map[sample][s]][i] = self.maps[s][sample]
            use = b.write if s in self.stages else b.read
            cells.maps[s] = ScaleMaps((ctypes.c_void_p * 2)(*map(use, maps[s])), b.write(halves[s]), MapShape(h, w, c))
            for path, field in ((UP, params.up), (DOWN, params.down)):
                field[s] = b.matrix(*self.weights[s, path]) if (s, path) in self.weights else Matrix()
            if s in self.stages:
                weights = self.stages[s]
                cells.stage[s] = structs.SepconvStage(
                    weights.arrays[0].ctypes.data, weights.matrix(), c, h, w, h, w, 1, structs.BETWEEN, structs.OUT,
                    None, None, 1, 1,
                )  # fmt: skip
                b.arrays += weights.arrays
        shape = launch_shape("stage_paths", params, self.dtype, device)
        info = emulator.launch("stage_paths", self.dtype, bytes(params), shape, b.arrays, **options)
        info["blocks"], info["taken"], info["finished"] = shape[0], int(ticket), finished
        return maps, halves, macs, info

    def check(self, opened, maps, halves, macs, samples=None) -> None:
        samples = list(range(self.n)) if samples is None else samples
        want_macs = torch.zeros_like(macs)
        for s, (h, w, c) in enumerate(self.shapes):
            for i, sample in enumerate(samples):
                out = self.out_map[sample][s]
                x, h_map, before = self.maps[s][sample], maps[s][out][i], torch.full((h * w * c,), float("nan"))
                if s in self.stages:
                    before = self.between[s][sample].flatten()
                    assert torch.equal(maps[s][1 - out][i], self.x[s][sample])
                    if any(opened(sample, s, path) for path in range(3)):
                        between, residual = (t[s][sample : sample + 1] for t in (self.between, self.x))
                        assert is_close(h_map[None], self.stages[s].reference(between, 1, residual, True))
                        want_macs[i, ROW, s, 1] = h * w * (9 * c + c * c)
                        x = h_map
                    else:
                        assert h_map.isnan().all(), "a closed node was written"
                size = h * w * c
                for path, at in ((UP, slice(size // 2)), (DOWN, slice(size // 2, size))):
                    half = halves[s][i, at]
                    if (s, path) not in self.weights or not opened(sample, s, path):
                        assert torch.equal(half.nan_to_num(-1).float(), before[at].nan_to_num(-1).float())
                        continue
                    weight, shift = (t.double() for t in self.weights[s, path])
                    source = x.double()
                    want = ((source[::2, ::2] if path == DOWN else source) @ weight.T + shift).relu()
                    assert_close(half.view(want.shape), want)
                    want_macs[i, ROW, s, 2 if path == UP else 4] = want.numel() * c
        assert torch.equal(macs, want_macs)


def same(a, b) -> None:
    """Of two runs."""
    for one, two in zip(*([*itertools.chain(*run[0]), *run[1], run[2]] for run in (a, b)), strict=True):
        assert torch.equal(one.nan_to_num(-1), two.nan_to_num(-1))


def some(sample: int, scale: int, path: int) -> bool:
    return (sample * 5 + scale * 3 + path) % 3 != 0


def everything(sample: int, scale: int, path: int) -> bool:
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "c", "h", "w"), [(3, 8, 8, 24), (2, 16, 16, 8), (1, 24, 8, 16), (2, 64, 8, 8)])
def test_paths(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> None:
    case = Case(n, c, h, w, dtype)
    for opened in (everything, some):
        *made, _ = case.run(opened)
        case.check(opened, *made)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_sizes(dtype: torch.dtype) -> None:
    """Only sizes that have a down path are even."""
    for h, w in ((1, 1), (5, 7), (26, 6)):
        case = Case(1, 16, 2 * h, 2 * w, dtype, scales=2)
        *made, _ = case.run(everything)
        case.check(everything, *made)


def test_items_of_several_blocks() -> None:
    """A map of many tiles: an item takes several blocks of output channels, the last of a tile fewer."""
    case = Case(1, 72, 256, 256, torch.float16, scales=2)

    def opened(sample: int, scale: int, path: int) -> bool:
        return path == DOWN

    *made, info = case.run(opened, counters=True)
    case.check(opened, *made)
    # a block of 128 and one of 32 for 256 tiles of 64 pixels: an item per tile, which reads its pixels once
    sites = info["memory_sites"]
    copied = sum(site["global_bytes"] for site in sites if site["opcode"].startswith("cp.async"))
    assert copied == (128 * 128 * 72) * 2 + 256 * (160 * 96) * 2


def test_nothing_open() -> None:
    case = Case(2, 16, 8, 8, torch.float16)
    *made, _ = case.run(lambda *_: False)
    assert all(half.isnan().all() for half in made[1]) and not made[2].any()


STAGED = [(0, 1, 2, 3), (1, 2, 3), (3,), (0, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("staged", STAGED, ids=str)
def test_stages_and_their_paths(staged: tuple[int, ...], dtype: torch.dtype) -> None:
    """A block alone, which takes all items one after another, and several at once."""
    case = Case(3, 16, 16, 24, dtype, staged=staged)
    for opened, options in ((everything, {}), (some, {"device": A100, "resident": 5})):
        *made, info = case.run(opened, **options)
        case.check(opened, *made)
        for i in range(3):
            for s in range(SCALES):
                is_open = any(opened(i, s, path) for path in range(3))
                assert (info["finished"][i, s] > 0) == (is_open and s in staged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schedules_and_grids_do_not_matter(dtype: torch.dtype) -> None:
    case = Case(2, 32, 16, 8, dtype)
    first = case.run(some)
    case.check(some, *first[:3])
    for device, options in (
        (ONE, {"order": "rev"}),
        (ONE, {"order": "rand", "seed": 3}),
        (H100, {"global_races": True}),
    ):
        same(first, case.run(some, device=device, **options))


def test_stages_do_not_race() -> None:
    """Without paths. With both, the check would need to know that a path waits: it reads what other blocks wrote."""
    case = Case(2, 16, 16, 24, torch.float16, staged=(0, 1, 2, 3))
    case.weights.clear()
    *made, _ = case.run(some, device=A100, resident=7, global_races=True)
    case.check(some, *made)


@pytest.mark.parametrize("resident", [2, 5, 64])
@pytest.mark.parametrize(("c", "h", "w"), [(8, 40, 64), (136, 8, 8)])  # of many tiles; of one, split by channels
def test_paths_wait(c: int, h: int, w: int, resident: int) -> None:
    """Blocks that take turns at every barrier, and only paths of the scale whose stage comes last: some are taken while
    other blocks still are at the stage. Maps are NaN before, and halves hold what the stage reads: a path too early
    would make NaN, or spoil another tile's input."""
    case = Case(1, c, h, w, torch.float16, scales=2, staged=(0, 1))

    def opened(sample: int, scale: int, path: int) -> bool:
        return scale == 0

    def polls(info: dict) -> int:
        return sum(n for opcode, n in info["opcodes"].items() if opcode.startswith("ld.relaxed"))

    first = case.run(opened)  # on one multiprocessor, which cuts work into fewer items
    case.check(opened, *first[:3])
    in_turn = case.run(opened, device=A100, counters=True)[3]
    spun = 0
    for seed, order in enumerate(("fwd", "rev", "rand", "rand")):
        options = {"resident": resident, "order": order, "seed": seed, "counters": True}
        found = case.run(opened, device=A100, **options)
        same(first, found)
        assert found[3]["finished"].equal(in_turn["finished"])
        # each block takes one more than there are
        assert found[3]["taken"] - found[3]["blocks"] == in_turn["taken"] - in_turn["blocks"]
        spun += polls(found[3]) - polls(in_turn)
    assert spun > 0


@pytest.mark.parametrize("staged", [(), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batch_does_not_change_a_sample(dtype: torch.dtype, staged: tuple[int, ...]) -> None:
    case = Case(3, 16, 8, 24, dtype, staged=staged)
    batch = case.run(some)
    for i in range(3):
        alone = case.run(some, samples=[i])
        same(
            alone,
            (
                [[m[i : i + 1] for m in pair] for pair in batch[0]],
                [h[i : i + 1] for h in batch[1]],
                batch[2][i : i + 1],
            ),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_traffic(dtype: torch.dtype) -> None:
    """No bank conflicts, whole sectors, and each item reads its pixels and weights once."""
    case = Case(1, 64, 32, 32, dtype, scales=2)
    *_, info = case.run(lambda sample, s, path: s == 0, counters=True)
    assert info["bank_conflict_ways"] <= 1.05
    assert info["gst_bytes"] == pytest.approx(info["gst_unique_bytes"], rel=0.01)
    assert 32 * info["gld_sectors"] <= 1.01 * info["gld_bytes"]  # scalars
    copies = [site for site in info["memory_sites"] if site["opcode"].startswith("cp.async")]
    assert copies and all(32 * site["sectors"] <= site["global_bytes"] for site in copies)
    copied = sum(site["global_bytes"] for site in copies)
    assert copied == dtype.itemsize * (16 * 16 * 64 + 4 * 128 * 64)  # one block of channels: an item for each tile
