"""csrc/cuda/kernels/sepconv.cu on the emulator: values, routing, counted work, what it may not touch."""

from __future__ import annotations

import ctypes
import dataclasses

import numpy as np
import pytest
import torch

from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.launch_list import DTYPES
from tests.support.cuda import structs
from tests.support.cuda.devices import A100, H100, SMALL
from tests.support.cuda.matrices import StageWeights, is_close
from tests.support.cuda.shapes import launch_shape

pytestmark = pytest.mark.skipif(emulator.why_not() is not None, reason=emulator.why_not() or "")

ROWS, ROW = 3, 1


def random_maps(n: int, h: int, w: int, c: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, h, w, c).to(dtype)


def launch(params: structs.SepconvParams, dtype: torch.dtype, buffers: list, blocks: int, **options) -> dict:
    """Launches as the host would, but with few blocks, so that each has several work items."""
    largest, threads, shared = launch_shape("sepconv", params, dtype)
    return emulator.launch("sepconv", dtype, bytes(params), (min(blocks, largest), threads, shared), buffers, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "h, w, c, n, stride",
    [
        (1, 1, 8, 8, 1),
        (9, 13, 24, 40, 1),
        (8, 17, 64, 64, 1),
        (17, 16, 64, 64, 2),
        (5, 19, 16, 72, 2),
        (6, 7, 136, 24, 2),
        (3, 9, 512, 96, 1),
    ],
)
def test_plain(dtype, h, w, c, n, stride):
    """The stem's stages: any sizes, odd ones too; every sample is done."""
    torch.manual_seed(h * w + c)
    samples, h_out, w_out = 2, -(-h // stride), -(-w // stride)
    weights = StageWeights(c, n, dtype)
    x = random_maps(samples, h, w, c, dtype)
    out = torch.full((samples, h_out, w_out, n), float("nan"), dtype=dtype)
    sample_macs = np.full((samples, 3), 7, np.int64)
    x_array, out_array = emulator.array(x), emulator.array(out)
    x_array.flags.writeable = False
    io = np.frombuffer(bytearray(bytes(structs.Io(sample_macs=sample_macs.ctypes.data))), np.uint8)
    io.flags.writeable = False
    params = structs.SepconvParams(io=io.ctypes.data, n=samples, stem=1)
    params.stage[0] = structs.SepconvStage(
        weights.arrays[0].ctypes.data, weights.matrix(), c, h, w, h_out, w_out, stride, structs.PLAIN, structs.PLAIN,
        x_array.ctypes.data, out_array.ctypes.data, 0, 1,
    )  # fmt: skip
    order = ("fwd", "rev", "rand")[(h + w) % 3]
    launch(params, dtype, [io, sample_macs, x_array, out_array, *weights.arrays], 3, order=order)
    assert is_close(out, weights.reference(x, stride, None, True))
    macs = h_out * w_out * (9 * c + c * n)
    assert sample_macs.tolist() == [[7 + macs, 7, 7]] * samples


@dataclasses.dataclass
class Cells:
    """The maps, weights and nodes of one row; a stage goes from X or `halves` to the out map or to `halves`."""

    dtype: torch.dtype
    samples: int
    sizes: dict[int, tuple[int, int, int]]  # scale -> h, w, c
    open_nodes: dict[int, list[int]]  # scale -> samples

    def __post_init__(self) -> None:
        self.weights = {s: StageWeights(c, c, self.dtype) for s, (_, _, c) in self.sizes.items()}
        self.map = {
            s: [random_maps(self.samples, *size, self.dtype) for _ in range(2)] for s, size in self.sizes.items()
        }
        self.halves = {s: random_maps(self.samples, *size, self.dtype) for s, size in self.sizes.items()}
        self.x_map = torch.randint(0, 2, (self.samples, structs.SCALES)).tolist()

    def run(self, first: bool, blocks: int, **options) -> tuple[np.ndarray, dict]:
        """The first stage X -> between with ReLU, or the second between -> out with X added."""
        nodes = (structs.Node * (self.samples * structs.SCALES))()
        counts = np.zeros((structs.LISTS, structs.SCALES), np.int32)
        lists = np.full((structs.LISTS, structs.SCALES, self.samples), -1, np.int32)
        for s, samples in self.open_nodes.items():
            counts[structs.OPEN, s] = len(samples)
            lists[structs.OPEN, s, : len(samples)] = samples
        for i, node in enumerate(nodes):
            node.x_map = self.x_map[i // structs.SCALES][i % structs.SCALES]
            node.out_map = 1 - node.x_map
        nodes_array = np.frombuffer(bytearray(bytes(nodes)), np.uint8)
        macs = np.zeros((self.samples, ROWS, structs.SCALES, 5), np.int64)
        io = np.frombuffer(bytearray(bytes(structs.Io(node_macs=macs.ctypes.data))), np.uint8)
        read_only = [io, nodes_array, counts, lists]
        for array in read_only:
            array.flags.writeable = False
        row = structs.Row(nodes_array.ctypes.data, counts.ctypes.data, lists.ctypes.data)
        params = structs.SepconvParams(io=io.ctypes.data, row=row, n=self.samples, row_index=ROW, rows=ROWS)
        buffers = [*read_only, macs]
        for s, (h, w, c) in self.sizes.items():
            arrays = [emulator.array(t) for t in (*self.map[s], self.halves[s])]
            pointers = [array.ctypes.data for array in arrays]
            params.maps[s] = structs.ScaleMaps(
                (ctypes.c_void_p * 2)(*pointers[:2]), pointers[2], structs.MapShape(h, w, c)
            )
            weights = self.weights[s]
            from_to = (structs.X, structs.BETWEEN) if first else (structs.BETWEEN, structs.OUT)
            params.stage[s] = structs.SepconvStage(
                weights.arrays[0].ctypes.data, weights.matrix(), c, h, w, h, w, 1, *from_to, None, None,
                int(not first), 1,
            )  # fmt: skip
            buffers += [*arrays, *weights.arrays]
        return macs, launch(params, self.dtype, buffers, blocks, **options)

    def x(self, s: int, sample: int) -> torch.Tensor:
        return self.map[s][self.x_map[sample][s]][sample : sample + 1]

    def out(self, s: int, sample: int) -> torch.Tensor:
        return self.map[s][1 - self.x_map[sample][s]][sample : sample + 1]

    def snapshot(self) -> dict:
        return {s: [t.clone() for t in (*self.map[s], self.halves[s])] for s in self.sizes}


SIZES = {0: (11, 9, 8), 1: (9, 8, 32), 2: (3, 5, 72), 3: (2, 9, 136)}
PATTERNS = {
    "some": {0: [1], 1: [0, 2], 2: [], 3: [0, 1]},
    "all": {s: [0, 1, 2] for s in SIZES},
    "none": {s: [] for s in SIZES},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("first", [True, False])
def test_open_samples(dtype, pattern, first):
    """All scales in one launch: open samples are computed and counted, nothing else is touched."""
    torch.manual_seed(1)
    cells = Cells(dtype, 3, SIZES, PATTERNS[pattern])
    before = cells.snapshot()
    macs, _ = cells.run(first, 7, order="rand" if first else "rev", seed=3)
    expected_macs = np.zeros_like(macs)
    for s, (h, w, c) in SIZES.items():
        for i in PATTERNS[pattern][s]:
            expected_macs[i, ROW, s, 1] = h * w * (9 * c + c * c)
            x = before[s][cells.x_map[i][s]][i : i + 1]
            if first:
                expected = cells.weights[s].reference(x, 1, None, True)
                out = cells.halves[s]
            else:
                expected = cells.weights[s].reference(before[s][2][i : i + 1], 1, x, True)
                out = cells.map[s][1 - cells.x_map[i][s]]
            assert is_close(out[i : i + 1], expected)
            before[s][2 if first else 1 - cells.x_map[i][s]][i] = out[i]  # the one change there may be
    for s, tensors in cells.snapshot().items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, before[s], strict=True))
    assert (macs == expected_macs).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_changes_no_bit(dtype):
    """A sample alone, split by output channels, and in a batch with so many tiles that it is not."""
    outs = []
    for open_samples in ([1], [0, 1]):
        torch.manual_seed(5)
        cells = Cells(dtype, 2, {1: (24, 72, 136)}, {1: open_samples})
        cells.run(True, 40)
        outs.append(cells.halves[1][1])
    assert torch.equal(*outs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shape(dtype):
    """512 channels fit every device; grids are no larger than the work, nor than what is resident."""
    params = structs.SepconvParams(n=3)
    for s, c in enumerate((64, 128, 256, 512)):
        matrix = structs.Matrix(None, None, c, c, c, c)
        params.stage[s] = structs.SepconvStage(
            1, matrix, c, 256 >> s, 512 >> s, 256 >> s, 512 >> s, 1, structs.X, structs.OUT, None, None, 1, 1
        )
    for limits in (SMALL, A100, H100):
        blocks, threads, shared = launch_shape("sepconv", params, dtype, limits)
        assert threads == 256 and shared + 512 <= limits.shared_per_block
        assert blocks == limits.multiprocessors * (limits.shared_per_multiprocessor // (shared + 1536))
    params.stage[0].h_out, params.stage[0].w_out = 1, 9  # two tiles for each sample
    for s in range(1, 4):
        params.stage[s].depthwise = None
    assert launch_shape("sepconv", params, dtype)[0] == 6
