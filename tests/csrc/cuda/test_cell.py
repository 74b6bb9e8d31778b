"""The fused cell on the emulator: values, what is written, races, schedules, counters of work and of bytes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES, DeviceLimits
from tests.support.cuda import matrices
from tests.support.cuda.devices import A100, ADA, H100
from tests.support.cuda.shapes import launch_shape, library
from tests.support.cuda.structs import LISTS, OPEN, SCALES, CellParams, Io, MapShape, Node, Row, ScaleMaps

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")

ROWS, ROW = 3, 1


FITS = """extern "C" int fits(int c, int dtype, const DeviceLimits* limits) {
  return cell_fits(c, DType(dtype), *limits);
}"""


def fits(c: int, dtype: torch.dtype, limits: DeviceLimits) -> bool:
    return bool(library("cell", FITS).fits(c, DTYPES.index(dtype), (ctypes.c_int * 4)(*limits)))


@dataclass
class Scale:
    """One scale's maps and weights; `open` lists the samples whose cells are open. fused=False: another launch's."""

    c: int
    h: int
    w: int
    open: tuple[int, ...]
    fused: bool = True
    x: Tensor = field(init=False)
    weights: list[tuple[Tensor, Tensor, Tensor]] = field(init=False)  # depthwise, pointwise, shift of each stage

    def make(self, n: int, dtype: torch.dtype, seed: int) -> Scale:
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, self.h, self.w, self.c, generator=g).to(dtype)
        self.weights = [
            (
                torch.randn(9, self.c, generator=g) / 3,
                (torch.randn(self.c, self.c, generator=g) / self.c**0.5).to(dtype),
                torch.randn(self.c, generator=g),
            )
            for _ in range(2)
        ]
        return self

    def reference(self) -> Tensor:
        """In float64, except that what lies between the two products is rounded as the storage type does."""
        dtype, x = self.x.dtype, self.x.double().permute(0, 3, 1, 2)
        y = x
        for i, (depthwise, pointwise, shift) in enumerate(self.weights):
            kernel = depthwise.double().T.reshape(self.c, 1, 3, 3)
            y = F.conv2d(y, kernel, padding=1, groups=self.c).to(dtype).double()
            y = F.conv2d(y, pointwise.double()[..., None, None], shift.double())
            y = (F.relu(y) if i == 0 else F.relu(y + x)).to(dtype).double()
        return y.permute(0, 2, 3, 1)


class Run:
    """Buffers and parameters of one launch over several scales."""

    def __init__(self, scales: list[Scale], n: int, dtype: torch.dtype, limits: DeviceLimits = H100):
        self.scales, self.n, self.dtype = scales, n, dtype
        self.buffers: list[np.ndarray] = []
        self.node_macs, self.sample_macs = (
            torch.zeros(n, ROWS, SCALES, 5, dtype=torch.int64),
            torch.zeros(n, 3, dtype=torch.int64),
        )
        io = Io(node_macs=self.keep(self.node_macs), sample_macs=self.keep(self.sample_macs))
        table = ((Node * SCALES) * n)()
        counts, samples = (
            torch.zeros(LISTS, SCALES, dtype=torch.int32),
            torch.full((LISTS, SCALES, n), -1, dtype=torch.int32),
        )
        p = self.params = CellParams(n=n, row_index=ROW, rows=ROWS)
        self.outputs: list[Tensor] = []
        for s, scale in enumerate(scales):
            out = torch.full_like(scale.x, float("nan"))
            self.outputs.append(out)
            x_map = s % 2
            maps = [self.keep(scale.x, read_only=True), self.keep(out)]
            if x_map == 1:
                maps.reverse()
            p.maps[s] = ScaleMaps((ctypes.c_void_p * 2)(*maps), None, MapShape(scale.h, scale.w, scale.c))
            counts[OPEN, s] = len(scale.open)
            samples[OPEN, s, : len(scale.open)] = torch.tensor(scale.open, dtype=torch.int32)
            for i in range(n):
                table[i][s].x_map, table[i][s].out_map = x_map, 1 - x_map
            for stage, (depthwise, pointwise, shift) in enumerate(scale.weights if scale.fused else ()):
                p.depthwise[s][stage] = self.keep(depthwise, read_only=True)
                addresses = (self.keep(tensor, read_only=True) for tensor in matrices.pack(pointwise, shift))
                p.pointwise[s][stage] = matrices.matrix(*addresses, scale.c, scale.c)
        p.row = Row(self.keep_bytes(table), self.keep(counts, read_only=True), self.keep(samples, read_only=True))
        p.io = self.keep_bytes(io)
        self.shape = launch_shape("cell", p, dtype, limits)

    def keep_array(self, array: np.ndarray, read_only: bool) -> int:
        if read_only:
            array.flags.writeable = False
        self.buffers.append(array)
        return array.ctypes.data

    def keep(self, tensor: Tensor, read_only: bool = False) -> int:
        return self.keep_array(emulator.array(tensor), read_only)

    def keep_bytes(self, struct: ctypes.Structure | ctypes.Array) -> int:
        return self.keep_array(np.frombuffer(bytes(struct), dtype=np.uint8).copy(), True)

    def launch(self, blocks: int | None = None, **options) -> dict:
        shape = (blocks or self.shape[0], *self.shape[1:])
        options.setdefault("check_smem_limit", False)  # __init__ has compared with the device meant
        return emulator.launch("cell", self.dtype, bytes(self.params), shape, self.buffers, **options)

    def check(self) -> None:
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[self.dtype]
        nodes, halo = torch.zeros_like(self.node_macs), torch.zeros_like(self.sample_macs)
        for s, scale in enumerate(self.scales):
            wanted = scale.reference()
            done = scale.open if scale.fused else ()
            for i in range(self.n):
                if i not in done:
                    assert self.outputs[s][i].isnan().all()
                    continue
                error = (self.outputs[s][i].double() - wanted[i]).abs().max() / wanted[i].abs().max()
                assert error <= tolerance, (s, i, float(error))
                c = scale.c
                nodes[i, ROW, s, 1] = scale.h * scale.w * (2 * 9 * c + 2 * c * c)
                halo[i, 2] += self.halo(scale) * (9 * c + c * c)
        assert torch.equal(self.node_macs, nodes)
        assert torch.equal(self.sample_macs, halo)

    def halo(self, scale: Scale) -> int:
        """Pixels of stage 1 that are made more than once."""
        _, threads, shared = self.shape
        channels = 32 if scale.c <= 32 else 64 if scale.c <= 64 else 128
        size = 4 if self.dtype == torch.float32 else 2
        run = 4 if channels > 64 or size == 4 else 6
        weights = 2 * (channels * channels * size + 40 * channels)
        bands = 1
        while (
            weights + (20 * (run * (bands + 1) + 2) + 18 * run * (bands + 1)) * channels * size <= shared
            and 18 * (bands + 1) <= threads // 32 * 8
            and run * bands < scale.h + 2
        ):
            bands += 1
        rows, extra = run * bands - 2, 0
        for y in range(0, scale.h, rows):
            for x in range(0, scale.w, 16):
                h, w = min(rows, scale.h - y), min(16, scale.w - x)
                made_h = min(y + h + 1, scale.h) - max(y - 1, 0)
                made_w = min(x + w + 1, scale.w) - max(x - 1, 0)
                extra += made_h * made_w - h * w
        return extra


def run(scales: list[Scale], n: int, dtype: torch.dtype, limits=H100, blocks=None, **options) -> Run:
    for s, scale in enumerate(scales):
        scale.make(n, dtype, 10 + s)
    result = Run(scales, n, dtype, limits)
    result.launch(blocks, **options)
    result.check()
    return result


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(dtype):
    """Every number of channels that fits, and maps that end inside tiles."""
    for c in (8, 24, 32, 40, 64):
        run([Scale(c, 19, 21, (0,))], 1, dtype)
    if dtype != torch.float32:
        for c in (72, 96, 128):
            run([Scale(c, 11, 18, (0,))], 1, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_map_sizes(dtype):
    for h, w in ((1, 1), (1, 40), (40, 1), (2, 3), (16, 16), (17, 33), (35, 15)):
        run([Scale(16, h, w, (0,))], 1, dtype)


@pytest.mark.parametrize("limits", [H100, A100, ADA], ids=["h100", "a100", "ada"])
def test_devices(limits):
    """Tiles and blocks follow the device; results and counts are right on each."""
    for dtype, c in ((torch.float16, 64), (torch.float16, 32), (torch.float32, 64), (torch.bfloat16, 128)):
        if fits(c, dtype, limits):
            run([Scale(c, 30, 17, (0,))], 1, dtype, limits)


@pytest.mark.parametrize("dtype", DTYPES)
def test_open_lists(dtype):
    """Several scales of a batch in one launch; closed samples and scales of other launches stay untouched."""
    for lists in (((0, 2), (1,), (), (0, 1, 2)), ((), (), (), ()), ((0, 1, 2), (0, 1, 2), (2,), (1,))):
        sizes = ((16, 20, 36), (32, 10, 18), (64, 5, 9), (64, 3, 5))
        scales = [Scale(c, h, w, open_, fused=s != 3) for s, ((c, h, w), open_) in enumerate(zip(sizes, lists))]
        run(scales, 3, dtype, blocks=3)


@pytest.mark.parametrize("order", ["fwd", "rev", "rand"])
def test_schedules(order):
    """Few blocks with many tiles of several scales, in every order of threads; races raise."""
    for dtype in (torch.float32, torch.bfloat16):
        run([Scale(32, 33, 20, (0, 1)), Scale(64, 18, 17, (1,))], 2, dtype, blocks=2, order=order, global_races=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_never_changes_a_sample(dtype):
    batch = run([Scale(40, 21, 19, (0, 1, 2))], 3, dtype)
    for i in range(3):
        alone = Scale(40, 21, 19, (0,)).make(1, dtype, 10)
        alone.x, alone.weights = batch.scales[0].x[i : i + 1].clone(), batch.scales[0].weights
        single = Run([alone], 1, dtype, (A100, ADA, H100)[i])  # nor does the device, as tiles only say who does what
        single.launch()
        assert torch.equal(single.outputs[0][0], batch.outputs[0][i])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bytes_and_bank_conflicts(dtype):
    """At 64 channels: at most 1.3 times the bytes of X, the result, and the weights once per tile; no conflicts."""
    h, w, c = 48, 64, 64
    scale = Scale(c, h, w, (0,)).make(1, dtype, 1)
    launch = Run([scale], 1, dtype)
    tiles = launch.shape[0]
    assert launch.shape[1:] == (256, 114432) and tiles == 12
    stats = launch.launch(counters=True)
    launch.check()
    weights = 2 * (c * c * 2 + 10 * c * 4)
    assert stats["gld_bytes"] + stats["gst_bytes"] <= 1.3 * (2 * h * w * c * 2 + tiles * weights)
    assert stats["bank_conflict_ways"] <= 1.1
    assert stats["mma_macs"] == tiles * (7 * 48 + 256) * c * c  # 336 pixels for 324 of stage 1
    assert set(stats["gst_widths"]) <= {16, 8, 4}, "8 and 4: what the counters are"


def test_fits():
    half, single = torch.float16, torch.float32
    for limits in (H100, A100, ADA):
        assert all(fits(c, dtype, limits) for c in range(8, 65, 8) for dtype in DTYPES)
        assert not fits(12, half, limits) and not fits(0, half, limits) and not fits(72, single, limits)
        assert not fits(136, half, limits) and not fits(256, half, limits)
    assert fits(128, half, H100) and fits(128, torch.bfloat16, A100) and not fits(128, half, ADA)


def test_shapes():
    """The launch of 1024 x 2048 pixels' finest scale, and one without work."""
    params = CellParams(n=1)
    params.maps[0] = ScaleMaps((ctypes.c_void_p * 2)(), None, MapShape(256, 512, 64))
    assert launch_shape("cell", params, torch.float16, H100)[0] == 0
    params.depthwise[0][0] = 1
    assert launch_shape("cell", params, torch.float16, H100) == (
        264,
        256,
        114432,
    )  # 512 tiles for two blocks per multiprocessor
    assert H100.shared_per_multiprocessor >= 2 * (114432 + 1024)
    assert launch_shape("cell", params, torch.float16, ADA) == (128, 512, 85248)


def test_assembler():
    """No spills, and the registers for 512 threads per multiprocessor."""
    for dtype in DTYPES:
        for arch in ("sm_80", "sm_90"):
            for name, use in emulator._ptxsim().ptxas(emulator.ptx("cell", dtype), arch=arch).items():
                assert use["regs"] <= 128 and use["spill_stores"] == 0, (name, use)
