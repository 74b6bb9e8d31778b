"""csrc/cuda/paths.cu on the emulator: up and down paths of open samples, all scales in one launch."""

from __future__ import annotations

import ctypes

import pytest
import shapes
import torch
from buffers import Buffers, assert_close, poisoned
from structs import DOWN, DOWN_OPEN, LISTS, SCALES, UP, UP_OPEN, Io, Level, Matrix, Node, PathsParams, Row

from dynroute.runtime import emulator

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
ROWS, ROW = 5, 3


class Case:
    """Random maps and weights of a network with `c` base channels whose scale 0 is h x w."""

    def __init__(self, n: int, c: int, h: int, w: int, dtype: torch.dtype, scales: int = SCALES) -> None:
        g = torch.Generator().manual_seed(n + c + h)
        self.n, self.dtype, self.scales = n, dtype, scales
        self.shapes = [(h >> s, w >> s, c << s) for s in range(scales)]
        self.maps = [torch.randn(n, *shape, generator=g).relu().to(dtype) for shape in self.shapes]
        self.weights: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        for s, (_, _, c_s) in enumerate(self.shapes):
            for path, c_out, there in ((UP, c_s // 2, s > 0), (DOWN, 2 * c_s, s < scales - 1)):
                if there:
                    weight = (torch.randn(c_out, c_s, generator=g) / c_s**0.5).to(dtype)
                    self.weights[s, path] = weight, torch.randn(c_out, generator=g)
        self.out_map = [[(i + s) % 2 for s in range(SCALES)] for i in range(n)]

    def run(self, opened, samples=None, device=shapes.ONE, **options):
        """opened(sample, scale, path) -> bool. Returns halves per scale, counts [n, ROWS, 4, 5] and statistics."""
        samples = list(range(self.n)) if samples is None else samples
        n, b = len(samples), Buffers()
        nodes = (Node * (n * SCALES))()
        counts = torch.zeros(LISTS, SCALES, dtype=torch.int32)
        lists = torch.full((LISTS, SCALES, n), -1, dtype=torch.int32)
        for s in range(self.scales):
            for i, sample in enumerate(samples):
                nodes[i * SCALES + s].out_map = self.out_map[sample][s]
                for path, at in ((UP, UP_OPEN), (DOWN, DOWN_OPEN)):
                    if (s, path) in self.weights and opened(sample, s, path):
                        lists[at, s, counts[at, s]] = i
                        counts[at, s] += 1
        macs = torch.zeros(n, ROWS, SCALES, 5, dtype=torch.int64)
        params = PathsParams(n=n, row_index=ROW, rows=ROWS)
        params.io = b.struct(Io(nodes=b.write(macs)))
        params.row = Row(b.struct(nodes), b.read(counts), b.read(lists))
        halves = []
        for s, (h, w, c) in enumerate(self.shapes):
            maps = [poisoned(n, h, w, c, dtype=self.dtype) for _ in range(2)]
            for i, sample in enumerate(samples):
                maps[self.out_map[sample][s]][i] = self.maps[s][sample]
            halves.append(poisoned(n, h * w * c, dtype=self.dtype))
            params.level[s] = Level(
                (ctypes.c_void_p * 2)(b.read(maps[0]), b.read(maps[1])), b.write(halves[s]), h, w, c
            )
            for path, field in ((UP, params.up), (DOWN, params.down)):
                field[s] = b.matrix(*self.weights[s, path]) if (s, path) in self.weights else Matrix()
        shape = shapes.launch_shape("paths", params, self.dtype, device)
        info = emulator.launch("paths", self.dtype, bytes(params), shape, b.arrays, **options)
        return halves, macs, info

    def check(self, opened, halves, macs, samples=None) -> None:
        samples = list(range(self.n)) if samples is None else samples
        want_macs = torch.zeros_like(macs)
        for s, (h, w, c) in enumerate(self.shapes):
            for i, sample in enumerate(samples):
                size = h * w * c
                for path, half in ((UP, halves[s][i, : size // 2]), (DOWN, halves[s][i, size // 2 :])):
                    if (s, path) not in self.weights or not opened(sample, s, path):
                        assert half.isnan().all(), "a closed path was written"
                        continue
                    weight, shift = (t.double() for t in self.weights[s, path])
                    x = self.maps[s][sample].double()
                    want = ((x[::2, ::2] if path == DOWN else x) @ weight.T + shift).relu()
                    assert_close(half.view(want.shape), want)
                    want_macs[i, ROW, s, 2 if path == UP else 4] = want.numel() * c
        assert torch.equal(macs, want_macs)


def some(sample: int, scale: int, path: int) -> bool:
    return (sample * 5 + scale * 3 + path) % 3 != 0


def everything(sample: int, scale: int, path: int) -> bool:
    return True


@pytest.mark.parametrize("dtype", shapes.DTYPES)
@pytest.mark.parametrize(("n", "c", "h", "w"), [(3, 8, 8, 24), (2, 16, 16, 8), (1, 24, 8, 16), (2, 64, 8, 8)])
def test_paths(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> None:
    case = Case(n, c, h, w, dtype)
    for opened in (everything, some):
        halves, macs, _ = case.run(opened)
        case.check(opened, halves, macs)


@pytest.mark.parametrize("dtype", shapes.DTYPES)
def test_odd_sizes(dtype: torch.dtype) -> None:
    """Only sizes that have a down path are even."""
    for h, w in ((1, 1), (5, 7), (26, 6)):
        case = Case(1, 16, 2 * h, 2 * w, dtype, scales=2)
        halves, macs, _ = case.run(everything)
        case.check(everything, halves, macs)


def test_items_of_several_blocks() -> None:
    """A map of many tiles: an item takes several blocks of output channels, the last of a tile fewer."""
    case = Case(1, 40, 256, 256, torch.float16, scales=2)

    def opened(sample: int, scale: int, path: int) -> bool:
        return path == DOWN

    halves, macs, info = case.run(opened, counters=True)
    case.check(opened, halves, macs)
    # 3 blocks of 32 for 128 tiles of 128 pixels: 2 items per tile, each of which reads its pixels once
    sites = info["memory_sites"]
    copied = sum(site["global_bytes"] for site in sites if site["opcode"].startswith("cp.async"))
    assert copied == 2 * (128 * 128 * 40) * 2 + 128 * (96 * 64) * 2


def test_nothing_open() -> None:
    case = Case(2, 16, 8, 8, torch.float16)
    halves, macs, _ = case.run(lambda *_: False)
    assert all(half.isnan().all() for half in halves) and not macs.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_schedules_and_grids_do_not_matter(dtype: torch.dtype) -> None:
    case = Case(2, 32, 16, 8, dtype)
    first = case.run(some)
    case.check(some, *first[:2])
    for device, options in (
        (shapes.ONE, {"order": "rev"}),
        (shapes.ONE, {"order": "rand", "seed": 3}),
        (shapes.H100, {"global_races": True}),
    ):
        halves, macs, _ = case.run(some, device=device, **options)
        for a, b in zip(first[0], halves):
            assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1))
        assert torch.equal(first[1], macs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batch_does_not_change_a_sample(dtype: torch.dtype) -> None:
    case = Case(3, 16, 8, 24, dtype)
    batch, macs, _ = case.run(some)
    for i in range(3):
        alone, macs_alone, _ = case.run(some, samples=[i])
        for s in range(SCALES):
            assert torch.equal(alone[s][0].nan_to_num(-1), batch[s][i].nan_to_num(-1))
        assert torch.equal(macs_alone[0], macs[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_memory_traffic(dtype: torch.dtype) -> None:
    """No bank conflicts, whole sectors, and each item reads its pixels and weights once."""
    case = Case(1, 64, 32, 32, dtype, scales=2)
    _, _, info = case.run(lambda sample, s, path: s == 0, counters=True)
    assert info["bank_conflict_ways"] <= 1.05
    assert info["gst_bytes"] == pytest.approx(info["gst_unique_bytes"], rel=0.01)
    assert 32 * info["gld_sectors"] <= info["gld_bytes"]
    copied = sum(site["global_bytes"] for site in info["memory_sites"] if site["opcode"].startswith("cp.async"))
    items_per_tile = {torch.float32: 4, torch.float16: 2}[dtype]  # few tiles: an item for each block of channels
    assert copied == dtype.itemsize * (items_per_tile * 16 * 16 * 64 + 4 * 128 * 64)
