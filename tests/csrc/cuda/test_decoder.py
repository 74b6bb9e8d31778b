"""csrc/cuda/kernels/{merge,predictor,upsample}.cu on the emulator."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES
from tests.support.cuda.buffers import Buffers, assert_close, poisoned
from tests.support.cuda.devices import H100, ONE
from tests.support.cuda.shapes import launch_shape
from tests.support.cuda.structs import (
    KEEP,
    SCALES,
    Io,
    MapShape,
    MergeParams,
    Node,
    PredictorParams,
    Row,
    ScaleMaps,
    UpsampleParams,
)

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=str(emulator.why_not()))
SCHEDULES = ({"order": "rev"}, {"order": "rand", "seed": 5})


def bilinear(x: Tensor, factor: int) -> Tensor:
    """[n, h, w, c] -> [n, factor h, factor w, c], in double."""
    planes = interpolate(x.double().permute(0, 3, 1, 2), scale_factor=factor, mode="bilinear", align_corners=False)
    return planes.permute(0, 2, 3, 1)


# merge


class Merge:
    def __init__(self, n: int, h: int, w: int, c: int, c_out: int, dtype: torch.dtype, coarse: bool = True) -> None:
        g = torch.Generator().manual_seed(n + h + c)
        self.n, self.dtype, self.scale = n, dtype, 1
        self.map = torch.randn(n, h, w, c, generator=g).relu().to(dtype)
        self.coarse = torch.randn(n, h // 2, w // 2, c, generator=g).relu().to(dtype) if coarse else None
        self.weight = (torch.randn(c_out, c, generator=g) / c**0.5).to(dtype)
        self.shift = torch.randn(c_out, generator=g)
        # sample 0 is closed (weight 1), 1 is absent, 2 has no keep path, others are open
        self.keep = [(1.0, 0.0, 0.0)[i] if i < 3 else 0.25 + 0.1 * i for i in range(n)]

    def run(self, samples=None, device=ONE, **options):
        samples = list(range(self.n)) if samples is None else samples
        n, b = len(samples), Buffers()
        _, h, w, c = self.map.shape
        maps = [poisoned(n, h, w, c, dtype=self.dtype) for _ in range(2)]
        nodes = (Node * (n * SCALES))()
        for i, sample in enumerate(samples):
            node = nodes[i * SCALES + self.scale]
            node.present, node.out_map, node.weight[KEEP] = int(sample != 1), sample % 2, self.keep[sample]
            if sample == 1:  # everything about an absent node is undefined
                node.out_map, node.weight[KEEP] = 12345, float("nan")
            elif self.keep[sample] != 0:
                maps[sample % 2][i] = self.map[sample]
        out = poisoned(n, h, w, len(self.weight), dtype=self.dtype)
        macs = torch.zeros(n, 3, dtype=torch.int64)
        params = MergeParams(
            io=b.struct(Io(sample_macs=b.write(macs))),
            row=Row(b.struct(nodes), None, None),
            maps=ScaleMaps((ctypes.c_void_p * 2)(*map(b.read, maps)), None, MapShape(h, w, c)),
            scale=self.scale,
            coarse=None if self.coarse is None else b.read(self.coarse[samples]),
            weight=b.matrix(self.weight, self.shift),
            out=b.write(out),
            n=n,
        )
        shape = launch_shape("merge", params, self.dtype, device)
        return out, macs, emulator.launch("merge", self.dtype, bytes(params), shape, b.arrays, **options)

    def check(self, out: Tensor, macs: Tensor) -> None:
        x = self.map.double() * torch.tensor(self.keep).double().view(-1, 1, 1, 1)
        if self.coarse is not None:
            x = x + bilinear(self.coarse, 2)
        want = (x.float().to(self.dtype).double() @ self.weight.double().T + self.shift.double()).relu()
        # an A that is rounded to the other side than the reference's adds to the rounding of the result
        assert_close(out, want, roundings=3)
        assert macs.tolist() == [[0, want[0].numel() * x.shape[-1], 0]] * self.n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "h", "w", "c", "c_out"),
    [(5, 6, 10, 8, 8), (4, 2, 2, 24, 16), (1, 18, 8, 64, 64), (2, 4, 6, 160, 80), (1, 2, 4, 512, 256)],
)
def test_merge(n: int, h: int, w: int, c: int, c_out: int, dtype: torch.dtype) -> None:
    case = Merge(n, h, w, c, c_out, dtype)
    case.check(*case.run()[:2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_at_the_coarsest_scale(dtype: torch.dtype) -> None:
    """Nothing to add, and sizes are any."""
    for h, w in ((1, 1), (3, 9)):
        case = Merge(4, h, w, 16, 8, dtype, coarse=False)
        case.check(*case.run()[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merge_items_of_several_blocks(dtype: torch.dtype) -> None:
    """A map of many tiles: an item takes several blocks of output channels, the last of a tile fewer."""
    case = Merge(1, 64, 128, 8, 136, dtype)
    case.check(*case.run()[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merge_is_the_same_however_it_runs(dtype: torch.dtype) -> None:
    case = Merge(4, 10, 6, 40, 72, dtype)
    out, macs, _ = case.run()
    case.check(out, macs)
    for options in SCHEDULES:
        assert torch.equal(case.run(device=H100, **options)[0], out)
    for i in range(4):
        assert torch.equal(case.run(samples=[i])[0][0], out[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_traffic(dtype: torch.dtype) -> None:
    _, _, info = Merge(1, 16, 16, 64, 64, dtype).run(counters=True)
    assert info["bank_conflict_ways"] <= 1.05
    assert info["gst_bytes"] == pytest.approx(info["gst_unique_bytes"], rel=0.01)


# predictor


class Predictor:
    def __init__(self, n: int, h: int, w: int, c: int, classes: int, dtype: torch.dtype) -> None:
        g = torch.Generator().manual_seed(n + h + c)
        self.n, self.dtype = n, dtype
        self.x = torch.randn(n, h, w, c, generator=g).relu().to(dtype)
        self.weight = (torch.randn(classes, 3, 3, c, generator=g) / (9 * c) ** 0.5).to(dtype)
        self.bias = torch.randn(classes, generator=g)

    def run(self, samples=None, **options):
        samples = list(range(self.n)) if samples is None else samples
        n, b = len(samples), Buffers()
        _, h, w, c = self.x.shape
        out = poisoned(n, h, w, len(self.weight), dtype=torch.float32)
        macs = torch.zeros(n, 3, dtype=torch.int64)
        params = PredictorParams(
            io=b.struct(Io(sample_macs=b.write(macs))),
            x=b.read(self.x[samples]),
            weight=b.matrix(self.weight.flatten(1), self.bias),
            out=b.write(out),
            n=n, h=h, w=w, c=c,
        )  # fmt: skip
        shape = launch_shape("predictor", params, self.dtype, ONE)
        return out, macs, emulator.launch("predictor", self.dtype, bytes(params), shape, b.arrays, **options)

    def check(self, out: Tensor, macs: Tensor) -> None:
        x, weight = self.x.double().permute(0, 3, 1, 2), self.weight.double().permute(0, 3, 1, 2)
        want = conv2d(x, weight, self.bias.double(), padding=1).permute(0, 2, 3, 1)
        assert_close(out, want)  # sums are float and inputs are given: no rounding to 16 bits in between
        assert macs.tolist() == [[0, want[0].numel() * 9 * self.x.shape[-1], 0]] * self.n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("n", "h", "w", "c", "classes"),
    [(2, 9, 18, 8, 19), (1, 1, 1, 24, 2), (3, 3, 5, 40, 1), (1, 8, 16, 64, 19), (1, 5, 7, 16, 150), (1, 2, 33, 72, 32)],
)
def test_predictor(n: int, h: int, w: int, c: int, classes: int, dtype: torch.dtype) -> None:
    case = Predictor(n, h, w, c, classes, dtype)
    case.check(*case.run()[:2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predictor_is_the_same_however_it_runs(dtype: torch.dtype) -> None:
    case = Predictor(3, 5, 17, 24, 40, dtype)
    out, _, _ = case.run()
    for options in SCHEDULES:
        assert torch.equal(case.run(**options)[0], out)
    for i in range(3):
        assert torch.equal(case.run(samples=[i])[0][0], out[i])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("c", [24, 64])
def test_predictor_traffic(dtype: torch.dtype, c: int) -> None:
    _, _, info = Predictor(1, 16, 32, c, 19, dtype).run(counters=True)
    assert info["bank_conflict_ways"] <= 1.1
    assert info["gst_bytes"] == 16 * 32 * 19 * 4


# upsample


class Upsample:
    def __init__(self, n: int, classes: int, out_h: int, out_w: int, spare: int = 0) -> None:
        g = torch.Generator().manual_seed(n + classes + out_w)
        self.n, self.out_h, self.out_w = n, out_h, out_w
        self.x = torch.randn(n, -(-out_h // 4) + spare, -(-out_w // 4) + spare, classes, generator=g)
        if classes > 4:
            self.x[..., classes - 2] = self.x[..., 1]  # equal logits: the first class counts

    def run(self, logits: bool = True, labels: bool = True, samples=None, **options):
        samples = list(range(self.n)) if samples is None else samples
        n, b = len(samples), Buffers()
        _, h, w, classes = self.x.shape
        planes = poisoned(n, classes, self.out_h, self.out_w, dtype=torch.float32)
        classes_of = torch.full((n, self.out_h, self.out_w), 255, dtype=torch.uint8)
        io = Io(logits=b.write(planes) if logits else None, labels=b.write(classes_of) if labels else None)
        params = UpsampleParams(
            io=b.struct(io), x=b.read(self.x[samples]), n=n, h=h, w=w, classes=classes, out_h=self.out_h,
            out_w=self.out_w,
        )  # fmt: skip
        shape = launch_shape("upsample", params, torch.float32, ONE)
        return planes, classes_of, emulator.launch("upsample", torch.float32, bytes(params), shape, b.arrays, **options)

    def check(self, planes: Tensor, labels: Tensor) -> None:
        want = bilinear(self.x, 4).permute(0, 3, 1, 2)[:, :, : self.out_h, : self.out_w]
        assert_close(planes, want)
        assert np.array_equal(labels.numpy(), planes.numpy().argmax(1))  # numpy promises the first of equal ones


UPSAMPLES = [(2, 19, 32, 128, 0), (1, 19, 20, 264, 1), (1, 5, 17, 30, 0), (1, 3, 9, 257, 0), (2, 2, 6, 127, 2)]
UPSAMPLES += [(1, 40, 5, 7, 0), (1, 1, 1, 1, 0), (1, 150, 3, 130, 0), (2, 6, 8, 125, 0)]


@pytest.mark.parametrize("case", UPSAMPLES)
def test_upsample(case: tuple[int, int, int, int, int]) -> None:
    upsample = Upsample(*case)
    planes, labels, _ = upsample.run()
    upsample.check(planes, labels)
    nothing, alone, _ = upsample.run(logits=False)
    assert nothing.isnan().all() and torch.equal(labels, alone)
    only, nothing, _ = upsample.run(labels=False)
    assert (nothing == 255).all() and torch.equal(planes, only)


def test_upsample_is_the_same_however_it_runs() -> None:
    upsample = Upsample(3, 19, 18, 35)
    planes, labels, _ = upsample.run()
    upsample.check(planes, labels)
    for options in SCHEDULES:
        assert torch.equal(upsample.run(**options)[0], planes)
    for i in range(3):
        assert torch.equal(upsample.run(samples=[i])[0][0], planes[i])


@pytest.mark.parametrize(("classes", "out_w"), [(19, 256), (20, 256), (19, 253)])
def test_upsample_traffic(classes: int, out_w: int) -> None:
    """Planes are written once, in 16-byte stores but for the ends of lines that do not begin at multiples of that."""
    _, _, info = Upsample(1, classes, 32, out_w).run(labels=False, counters=True)
    size = classes * 32 * out_w
    assert info["bank_conflict_ways"] == 1 and info["gst_bytes"] == 4 * size
    single = info["gst_widths"].get(4, 0)
    assert single == 0 if out_w % 4 == 0 else single <= 6 * classes * 32
    assert info["gst_widths"][16] == (size - single) // 4
