"""A routing space in numpy and torch, as the CUDA kernels see it, and the rules of routing restated in Python."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field

import numpy as np
import torch

from dynroute.native.contract import ACTIVATIONS
from dynroute.runtime.cuda import emulator
from tests.support.cuda import matrices, structs
from tests.support.cuda.devices import A100
from tests.support.cuda.shapes import launch_shape
from tests.support.cuda.structs import DOWN, KEEP, LISTS, OPEN, PATHS, PRESENT, SCALES, UP

THRESHOLD, NONE = np.float32(1e-4), np.float32(0)
NODE = np.dtype(
    [(name, "i4") for name in ("present", "aliased", "x_map")]
    + [(name, "f4") for name in ("down", "keep", "up")]
    + [("closed", "i4"), ("out_map", "i4"), ("weight", "f4", PATHS), ("unused", "i4")]
)


def scales_of_row(row: int) -> int:
    return min(row + 1, SCALES)


def path_exists(row: int, rows: int, scale: int, path: int) -> bool:
    return path == KEEP or (row < rows - 1 and (scale > 0 if path == UP else scale < SCALES - 1))


@dataclass
class RoutedNode:
    """What the rules say about one (row, sample, scale)."""

    present: bool = False
    x_map: int = 0
    aliased: bool = False
    down: np.float32 = NONE
    keep: np.float32 = NONE
    up: np.float32 = NONE
    closed: bool = False
    out_map: int = 0
    weight: list = field(default_factory=lambda: [NONE] * PATHS)


def first_row() -> list[RoutedNode]:
    return [RoutedNode(present=s == 0, aliased=s == 0, keep=np.float32(s == 0)) for s in range(SCALES)]


def route(nodes: list[RoutedNode], alphas: np.ndarray, row: int, rows: int) -> list[RoutedNode]:
    """Fills one sample's nodes from their alphas [4, 3]; returns the next row's."""
    for s, node in enumerate(nodes):
        if not node.present:
            continue
        a = [alphas[s, p] if path_exists(row, rows, s, p) else np.float32(0) for p in range(PATHS)]
        node.closed = bool(a[UP] + a[KEEP] + a[DOWN] < THRESHOLD)
        node.weight = [x if not node.closed and x > THRESHOLD else np.float32(0) for x in a]
        if node.closed:
            node.weight[KEEP] = np.float32(1)
        node.out_map = node.x_map if node.closed else 1 - node.x_map
    following = [RoutedNode() for _ in range(SCALES)]
    for s in range(scales_of_row(row + 1)):
        now, source = following[s], nodes[s]

        def passes(scale: int, path: int) -> bool:
            inside = 0 <= scale < SCALES and path_exists(row, rows, scale, path)
            return inside and nodes[scale].present and not nodes[scale].closed

        now.present = source.present or passes(s - 1, DOWN) or passes(s + 1, UP)
        if not now.present:
            continue
        now.keep = source.weight[KEEP] if source.present else np.float32(0)
        now.down = nodes[s - 1].weight[DOWN] if passes(s - 1, DOWN) else np.float32(0)
        now.up = nodes[s + 1].weight[UP] if passes(s + 1, UP) else np.float32(0)
        now.aliased = bool(now.keep == 1 and now.down == 0 and now.up == 0)
        if source.present:
            now.x_map = source.out_map if now.aliased else 1 - source.out_map
    return following


class Gate:
    """Random weights of a node's gate; as the kernels want them and in float64."""

    def __init__(self, c: int, gates: int, dtype: torch.dtype, g: torch.Generator):
        n = c // 2
        self.n_pad = matrices.padded(n)
        conv = (torch.randn(n, c, generator=g) / c**0.5).to(dtype)
        shift, fc = torch.randn(n, generator=g) * 0.3, torch.randn(gates, n, generator=g) * (4 / n) ** 0.5
        bias = torch.randn(gates, generator=g) * 0.5
        self.arrays = [emulator.array(x) for x in (*matrices.pack(conv, shift), fc.contiguous(), bias)]
        for a in self.arrays:
            a.flags.writeable = False
        self.conv, self.shift, self.fc, self.bias = conv.double(), shift.double(), fc.double(), bias.double()
        self.matrix = matrices.matrix(self.arrays[0].ctypes.data, self.arrays[1].ctypes.data, n, c)

    def __call__(self, x: torch.Tensor, activation: str, small: bool) -> torch.Tensor:
        """[h, w, c] float64 -> [gates]; in the order keep, up, down."""
        if small:
            x = x.permute(2, 0, 1)[None]
            x = torch.nn.functional.interpolate(x, scale_factor=0.25, mode="bilinear", align_corners=False)
            x = x[0].permute(1, 2, 0)
        features = (x @ self.conv.T + self.shift).clamp(min=0).mean((0, 1))
        y = self.fc @ features + self.bias
        return {"tanh": y.tanh().clamp(min=0), "sigmoid": y.sigmoid(), "softmax": y.softmax(0)}[activation]


class Space:
    """Maps, tables and gates of n samples; `init_call` and `aggregate_route` launch the kernels of these names."""

    def __init__(
        self, n: int, h: int, w: int, c: int, dtype: torch.dtype, rows: int = 5, activation: str = "tanh",
        small: bool = False, seed: int = 0,
    ):  # fmt: skip
        self.n, self.c, self.dtype, self.rows, self.activation, self.small = n, c, dtype, rows, activation, small
        self.g = torch.Generator().manual_seed(seed)
        self.shapes = [(max(h >> s, 1), max(w >> s, 1), c << s) for s in range(SCALES)]
        nan = float("nan")
        self.maps = [[torch.full((n, *x), nan, dtype=dtype) for _ in range(2)] for x in self.shapes]
        self.halves = [torch.full((n, x[0] * x[1] * x[2]), nan, dtype=dtype) for x in self.shapes]
        self.maps[0][0].copy_(self.random(n, *self.shapes[0]))
        self.map_arrays = [[emulator.array(m) for m in pair] for pair in self.maps]
        self.half_arrays = [emulator.array(x) for x in self.halves]
        for x in self.half_arrays:
            x.flags.writeable = False
        self.scale_maps = (structs.ScaleMaps * SCALES)()
        for s in range(SCALES):
            pointers = (ctypes.c_void_p * 2)(*(a.ctypes.data for a in self.map_arrays[s]))
            self.scale_maps[s] = structs.ScaleMaps(
                pointers, self.half_arrays[s].ctypes.data, structs.MapShape(*self.shapes[s])
            )

        # poisoned, for `init_call` to clear
        self.nodes = np.full((rows, n, SCALES, NODE.itemsize), 0xFF, np.uint8)
        self.counts = np.full((rows, LISTS, SCALES), -7, np.int32)
        self.samples = np.full((rows, LISTS, SCALES, n), -7, np.int32)
        self.row_structs = (structs.Row * rows)(
            *(structs.Row(*(x[r].ctypes.data for x in (self.nodes, self.counts, self.samples))) for r in range(rows))
        )
        self.counters = np.full(rows * (n * SCALES + 1), -7, np.int32)
        self.alphas = np.full((n, rows, SCALES, PATHS), np.nan, np.float32)
        self.node_macs = np.full((n, rows, SCALES, 5), -7, np.int64)
        self.sample_macs = np.full((n, 3), -7, np.int64)
        self.gates: np.ndarray | None = None
        self.io = np.zeros(ctypes.sizeof(structs.Io), np.uint8)
        self.gate_weights = {}
        if activation != "fixed":
            for row in range(rows):
                for s in range(scales_of_row(row)):
                    gates = sum(path_exists(row, rows, s, p) for p in range(PATHS))
                    self.gate_weights[row, s] = Gate(self.shapes[s][2], gates, dtype, self.g)

    def random(self, n: int, *shape_: int) -> torch.Tensor:
        """Samples differ in scale, so that their gates differ."""
        scale = torch.linspace(0.3, 2, n).view(-1, *[1] * len(shape_))
        return (torch.randn(n, *shape_, generator=self.g) * scale).to(self.dtype)

    def tables(self) -> list[np.ndarray]:
        return [self.nodes, self.counts, self.samples]

    def init_call(self, gates: np.ndarray | None = None, **options):
        self.gates = gates
        pointer = lambda x: None if x is None else x.ctypes.data  # noqa: E731
        value = structs.Io(
            None, pointer(gates), None, None, *map(pointer, (self.alphas, self.node_macs, self.sample_macs))
        )
        params = structs.InitCallParams(
            value, self.io.ctypes.data, self.counters.ctypes.data, self.counters.size, self.row_structs[0],
            self.n, self.rows,
        )  # fmt: skip
        buffers = [
            self.io,
            self.counters,
            self.alphas,
            self.node_macs,
            self.sample_macs,
            *self.tables(),
        ]
        grid = launch_shape("init_call", params, self.dtype, A100)
        return emulator.launch("init_call", self.dtype, bytes(params), grid, buffers, **options)

    def params(self, row: int, tasks: list[int]) -> tuple[structs.AggregateRouteParams, list[np.ndarray]]:
        gates, buffers = (structs.Matrix * SCALES)(), []
        fc_weight, fc_bias, partials = ((ctypes.c_void_p * SCALES)() for _ in range(3))
        for s in range(scales_of_row(row)):
            gate = self.gate_weights.get((row, s))
            if gate is None:
                continue
            partial = np.full((self.n, tasks[s], gate.n_pad), np.nan, np.float32)
            gates[s] = gate.matrix
            fc_weight[s], fc_bias[s] = gate.arrays[2].ctypes.data, gate.arrays[3].ctypes.data
            partials[s] = partial.ctypes.data
            buffers += [*gate.arrays, partial]
        following = self.row_structs[row + 1] if row + 1 < self.rows else structs.Row()
        arrivals = self.counters.ctypes.data + 4 * row * (self.n * SCALES + 1)
        activation = ACTIVATIONS.index(self.activation)
        params = structs.AggregateRouteParams(
            self.io.ctypes.data, self.row_structs[row], following, self.scale_maps, gates, fc_weight, fc_bias, partials,
            arrivals, arrivals + 4 * self.n * SCALES, activation, self.small, self.n, row, self.rows,
        )  # fmt: skip
        return params, buffers

    def aggregate_route(self, row: int, tasks: list[int], blocks: int | None = None, **options):
        params, buffers = self.params(row, tasks)
        grid = launch_shape("aggregate_route", params, self.dtype, A100)
        if blocks is not None:
            grid = (blocks, *grid[1:])
        buffers += [*(a for pair in self.map_arrays for a in pair), *self.half_arrays, *self.tables()]
        buffers += [self.io, self.counters, self.alphas, self.node_macs]
        if self.gates is not None:
            buffers.append(self.gates)
        return emulator.launch("aggregate_route", self.dtype, bytes(params), grid, buffers, **options)

    def view(self, row: int) -> np.ndarray:
        return self.nodes[row].view(NODE)[..., 0]

    def up(self, s: int) -> torch.Tensor:
        """The outgoing path up of scale s: [n, h, w, c/2]."""
        h, w, c = self.shapes[s]
        return self.halves[s][:, : h * w * (c // 2)].view(self.n, h, w, c // 2)

    def down(self, s: int) -> torch.Tensor:
        """Behind it the path down: [n, h/2, w/2, 2c]."""
        h, w, c = self.shapes[s]
        begin, size = h * w * c // 2, (h // 2) * (w // 2) * 2 * c
        return self.halves[s][:, begin : begin + size].view(self.n, h // 2, w // 2, 2 * c)

    def run_cells(self, row: int, routed: list[list[RoutedNode]]):
        """What the kernels behind `aggregate_route` would write; NaN wherever nothing may be read."""
        for s in range(scales_of_row(row)):
            fresh = self.random(self.n, *self.shapes[s])
            self.halves[s].fill_(float("nan"))
            up, down = self.random(*self.up(s).shape), self.random(*self.down(s).shape)
            for i in range(self.n):
                node = routed[i][s]
                if not node.present or node.closed:
                    continue
                if node.weight[KEEP] != 0:
                    self.maps[s][node.out_map][i] = fresh[i]
                else:
                    self.maps[s][node.out_map][i] = float("nan")
                if node.weight[UP] != 0:
                    self.up(s)[i] = up[i]
                if node.weight[DOWN] != 0:
                    self.down(s)[i] = down[i]

    def x(self, i: int, s: int, node: RoutedNode) -> torch.Tensor:
        """[h, w, c] in float64, from the sources."""
        h, w, c = self.shapes[s]
        x = torch.zeros(h, w, c, dtype=torch.float64)
        if node.down != 0:
            x += float(node.down) * self.down(s - 1)[i].double()
        if node.keep != 0:
            x += float(node.keep) * self.maps[s][node.x_map if node.aliased else 1 - node.x_map][i].double()
        if node.up != 0:
            up = self.up(s + 1)[i].double().permute(2, 0, 1)[None]
            up = torch.nn.functional.interpolate(up, scale_factor=2, mode="bilinear", align_corners=False)
            up = torch.nn.functional.pad(up, (0, w - up.shape[3], 0, h - up.shape[2]), mode="replicate")
            x += float(node.up) * up[0].permute(1, 2, 0)
        return x


def same_lists(space: Space, row: int, which: int, want: list[list[int]]):
    for s in range(SCALES):
        count = space.counts[row][which, s]
        assert space.samples[row][which, s, :count].tolist() == want[s], (row, which, s)


def check_tables(space: Space, row: int, routed: list[list[RoutedNode]], following: list[list[RoutedNode]]):
    """Row `row`'s tables behind its routing, and what the next row's now hold."""
    for i in range(space.n):
        for s in range(SCALES):
            got, want = space.view(row)[i, s], routed[i][s]
            if want.present:
                assert (got["closed"], got["out_map"]) == (want.closed, want.out_map), (i, s)
                assert got["weight"].tolist() == [float(x) for x in want.weight], (i, s)
    for which, path in ((OPEN, None), (structs.UP_OPEN, UP), (structs.DOWN_OPEN, DOWN)):
        listed = lambda node: node.present and not node.closed and (path is None or node.weight[path] != 0)  # noqa: B023, E731
        same_lists(space, row, which, [[i for i in range(space.n) if listed(routed[i][s])] for s in range(SCALES)])
    if row + 1 < space.rows:
        check_present(space, row + 1, following)


def check_present(space: Space, row: int, routed: list[list[RoutedNode]]):
    for i in range(space.n):
        for s in range(SCALES):
            got, want = space.view(row)[i, s], routed[i][s]
            assert got["present"] == want.present, (i, s)
            if want.present:
                assert (got["aliased"], got["x_map"]) == (want.aliased, want.x_map), (i, s)
                assert [got[x] for x in ("down", "keep", "up")] == [want.down, want.keep, want.up], (i, s)
    same_lists(space, row, PRESENT, [[i for i in range(space.n) if routed[i][s].present] for s in range(SCALES)])
