"""A call of one shape as lists of launches: what each kernel is launched with, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import triton
from torch import Tensor

from dynroute.models.config import NetworkConfig
from dynroute.ops.triton import configs
from dynroute.ops.triton.launch import direct
from dynroute.ops.triton.route import block_of, route_kernel
from dynroute.runtime.triton import dense, routed
from dynroute.runtime.triton.routed import OTHER, OWN, PLAIN
from dynroute.runtime.triton.weights import Product, Stage, Weights
from dynroute.runtime.triton.workspace import Workspace, stem_side
from dynroute.space.wiring import CLOSED_BELOW, DOWN, KEEP, PART_NAMES, SCALES, UP, Node, build_space

GATE, CELL, OF_UP, OF_DOWN = map(PART_NAMES.index, ("gate", "cell", "up", "down"))
STEM, DECODER = 0, 1  # of a sample's work beside its nodes
_PATHS = {"PATH_KEEP": KEEP, "CLOSED": CLOSED_BELOW}
PIXELS = 1024  # of a program that works on planes


class Launch(NamedTuple):
    """A kernel and what it is launched with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]

    def run(self) -> None:
        direct(self.kernel)[self.grid](*self.arguments, **self.constants)


class Plan:
    """The launches of calls of one shape.

    Args:
        config: the network's.
        weights: the network's.
        workspace: which buffers there are.
        memory: where they lie, uint8.
        paths: bool [L+1, 4, 3] on the device: the paths that exist.
        gated: whether gates are computed, or lie in `buffers["gates"]`.

    Attributes:
        buffers: by name.
        middle: the launches between those that read images and those that write results of full size.
    """

    def __init__(
        self, config: NetworkConfig, weights: Weights, workspace: Workspace, memory: Tensor, paths: Tensor, gated: bool
    ) -> None:
        self.config, self.weights, self.space, self.paths = config, weights, build_space(config.layers), paths
        self.n, self.h, self.w, self.storage = workspace.n, workspace.h, workspace.w, workspace.storage
        self.buffers = workspace.views(memory)
        self.middle = [*self._stem(), *(launch for row in self.space for launch in self._row(row, gated))]
        self.middle += self._decoder()

    def first(self, images: Tensor) -> list[Launch]:
        """Nothing is counted yet; the stem's first convolution of images [n, in_channels, h, w]."""
        nodes, samples = self.buffers["node_macs"], self.buffers["sample_macs"]
        begin = Launch(
            dense.begin_kernel, (triton.cdiv(nodes.numel(), PIXELS),),
            (self.buffers["present_0"], self.buffers["slots_0"], nodes, samples,
             self.n * SCALES, nodes.numel(), samples.numel()),
            {"BLOCK": PIXELS},
        )  # fmt: skip
        half = stem_side(self.h), stem_side(self.w)
        conv = self._conv(
            images, self.weights.stem_conv, self.buffers["stem_a"], (self.h, self.w), half, STEM,
            to=(self.config.stem_width, 1), of=(1, self.h * self.w), STRIDE=2, PADDING=0, RELU=True,
        )  # fmt: skip
        return [begin, conv]

    def last(self, out: Tensor) -> Launch:
        """What is of full size, cropped: logits float32 [n, classes, height, width], or uint8 [n, height, width]."""
        h, w, pixels = self.h // 4, self.w // 4, out.shape[-2] * out.shape[-1]
        classes, tiles = self.config.num_classes, triton.cdiv(pixels, PIXELS)
        arguments = (self.buffers["small_logits"], out, h, w, out.shape[-1], pixels, classes)
        if out.dim() == 3:
            return Launch(dense.labels_kernel, (tiles, self.n), arguments, {"BLOCK": PIXELS})
        return Launch(dense.logits_kernel, (tiles, classes, self.n), arguments, {"BLOCK": PIXELS})

    def _size(self, scale: int) -> tuple[int, int, int]:
        """Height, width, channels of a node's maps."""
        return self.h >> scale + 2, self.w >> scale + 2, self.config.channels << scale

    def _conv(
        self, x: Tensor, product: Product, out: Tensor, size: tuple[int, int], out_size: tuple[int, int], part: int,
        to: tuple[int, int], of: tuple[int, int], **constants: Any,
    ) -> Launch:  # fmt: skip
        out_channels, inputs = product.weight.shape
        cut, pixels = configs.find("conv", inputs // 9, self.storage), out_size[0] * out_size[1]
        return Launch(
            dense.conv_kernel, (triton.cdiv(pixels, cut.block_m), triton.cdiv(out_channels, cut.block_n), self.n),
            (x, *product, out, self.buffers["sample_macs"], part, 3, *size, out_size[1], pixels, inputs // 9,
             out_channels, *to, *of),
            {**constants, **cut.product()},
        )  # fmt: skip

    def _stage(
        self, stage: Stage, x: Tensor, out: Tensor, size: tuple[int, int], out_size: tuple[int, int], stride: int,
        macs: Tensor, counter: int, scale: int, turn: int, **constants: Any,
    ) -> Launch:  # fmt: skip
        """Of the stem, or of the cells at a scale; macs [n, ...] has the counter."""
        out_channels, channels = stage.product.weight.shape
        cut, pixels = configs.find("sepconv", channels, self.storage), out_size[0] * out_size[1]
        b = self.buffers
        return Launch(
            routed.stage_kernel, (triton.cdiv(pixels, cut.block_m), triton.cdiv(out_channels, cut.block_n), self.n),
            (x, stage.depthwise, *stage.product, b[f"maps_{scale}"], out, b["open_list"], b["open_count"],
             b[f"slots_{turn}"], macs, self.n, scale, counter, macs[0].numel(), *size, out_size[1], pixels, channels,
             out_channels, stride),
            {**constants, **cut.product()},
        )  # fmt: skip

    def _stem(self) -> Iterator[Launch]:
        half, b = (stem_side(self.h), stem_side(self.w)), self.buffers
        everyone: dict[str, Any] = {"HAS_LIST": False, "FROM": PLAIN, "TO": PLAIN, "HAS_RESIDUAL": False}
        of = (b["sample_macs"], STEM, 0, 0)
        first, second = self.weights.stem_stages
        yield self._stage(first, b["stem_a"], b["stem_b"], half, half, 1, *of, **everyone)
        yield self._stage(second, b["stem_b"], b["maps_0"], half, self._size(0)[:2], 2, *of, **everyone)

    def _row(self, nodes: tuple[Node, ...], gated: bool) -> Iterator[Launch]:
        row, b = nodes[0].row, self.buffers
        turn = row % 2
        for node in nodes if row > 0 else ():
            yield self._pull(node, turn)
        for node in nodes if gated else ():
            yield from self._gate(node, turn)
        yield Launch(
            route_kernel, (SCALES,),
            (b["gates"][row], b[f"present_{turn}"], self.paths[row], b[f"slots_{turn}"], b["alphas"][row],
             b["open_list"], b["open_count"], b["path_list"], b["path_count"], b["closed"],
             b[f"present_{1 - turn}"], b[f"slots_{1 - turn}"], self.n),
            {"CLOSED": CLOSED_BELOW, "PATH_UP": UP, "PATH_KEEP": KEEP, "PATH_DOWN": DOWN, "BLOCK": block_of(self.n)},
        )  # fmt: skip
        for node in nodes:
            yield from self._cell(node, turn)
        for node in nodes:
            yield from self._paths(node, 1 - turn)

    def _counter(self, node: Node, part: int) -> int:
        """The place of a node's part among a sample's counters."""
        return (node.row * SCALES + node.scale) * len(PART_NAMES) + part

    def _halves(self, scale: int, path: int) -> Tensor:
        """What a scale's up, or down, path is written into."""
        halves = self.buffers[f"halves_{scale}"].view(-1)
        middle = halves.numel() // 2
        return halves[middle:] if path == DOWN else halves[:middle]

    def _pull(self, node: Node, turn: int) -> Launch:
        b, s = self.buffers, node.scale
        h, w, c = self._size(s)
        cut, maps = configs.find("aggregate", c, self.storage), b[f"maps_{s}"]
        return Launch(
            routed.pull_kernel, (triton.cdiv(h * w, cut.block_m), triton.cdiv(c, cut.block_n), self.n),
            (maps, self._halves(s - 1, DOWN) if node.sources[DOWN] else maps,
             self._halves(s + 1, UP) if node.sources[UP] else maps, b["alphas"][node.row - 1], b["closed"],
             b[f"present_{turn}"], b[f"slots_{turn}"], self.n, s, w, h * w, c),
            {"HAS_DOWN": node.sources[DOWN], "HAS_KEEP": node.sources[KEEP], "HAS_UP": node.sources[UP],
             "PATH_UP": UP, "PATH_DOWN": DOWN, **_PATHS, **cut.tile()},
        )  # fmt: skip

    def _gate(self, node: Node, turn: int) -> Iterator[Launch]:
        b, s, gate = self.buffers, node.scale, self.weights.nodes[node.row][node.scale].gate
        assert gate is not None
        h, w, c = self._size(s)
        m, small = gate.conv.weight.shape[0], self.config.small_gate
        pooled_w, pixels, tiles = gate_tiles(self.config, h, w, s, self.storage)
        cut = configs.find("gate", c, self.storage)
        count = (self._counter(node, GATE), b["node_macs"][0].numel())
        yield Launch(
            routed.pool_kernel, (tiles, triton.cdiv(m, cut.block_n), self.n),
            (b[f"maps_{s}"], *gate.conv, b[f"present_{turn}"], b[f"slots_{turn}"], b["sums"], b["node_macs"],
             self.n, s, *count, h, w, pooled_w, pixels, tiles, c, m),
            {"SMALL": small, **cut.product()},
        )  # fmt: skip
        bits = sum(1 << path for path in range(3) if node.paths[path])
        yield Launch(
            routed.alphas_kernel, (1, 1, self.n),
            (b["sums"], gate.fc_weight, gate.fc_bias, b[f"present_{turn}"], b["gates"][node.row], b["node_macs"],
             s, *count, pixels, tiles, m),
            {"PATHS": bits, "GATES": sum(node.paths), "ACTIVATION": self.config.gate, "BLOCK": 64},
        )  # fmt: skip

    def _cell(self, node: Node, turn: int) -> Iterator[Launch]:
        b, s = self.buffers, node.scale
        cell, size = self.weights.nodes[node.row][s].cell, self._size(s)[:2]
        where = OWN
        for stages_left in reversed(range(len(cell))):
            to = OTHER if stages_left % 2 == 0 else PLAIN  # the last makes the node's output
            x, out = (b[f"maps_{s}"] if place != PLAIN else b[f"halves_{s}"] for place in (where, to))
            yield self._stage(
                cell[-1 - stages_left], x, out, size, size, 1, b["node_macs"], self._counter(node, CELL), s, turn,
                HAS_LIST=True, FROM=where, TO=to, HAS_RESIDUAL=stages_left == 0,
            )  # fmt: skip
            where = to

    def _paths(self, node: Node, turn: int) -> Iterator[Launch]:
        """turn: of the next row, whose slots say where the node's output lies."""
        b, s, weights = self.buffers, node.scale, self.weights.nodes[node.row][node.scale]
        h, w, c = self._size(s)
        ways = ((UP, OF_UP, weights.up, 1), (DOWN, OF_DOWN, weights.down, 2))
        for path, part, product, stride in ways:
            if product is None:
                continue
            cut, out_c = configs.find("transform", c, self.storage), product.weight.shape[0]
            out_w, pixels = w // stride, (h // stride) * (w // stride)
            yield Launch(
                routed.path_kernel, (triton.cdiv(pixels, cut.block_m), triton.cdiv(out_c, cut.block_n), self.n),
                (b[f"maps_{s}"], *product, self._halves(s, path), b["path_list"], b["path_count"], b[f"slots_{turn}"],
                 b["node_macs"], self.n, s, path, self._counter(node, part), b["node_macs"][0].numel(),
                 h, w, out_w, pixels, c, out_c, stride),
                cut.product(),
            )  # fmt: skip

    def _decoder(self) -> Iterator[Launch]:
        """From 1/32 to 1/4, each scale's result in its halves, which nothing reads any more; then the small logits."""
        b, rows = self.buffers, len(self.space)
        for s in reversed(range(SCALES)):
            h, w, c = self._size(s)
            product, out = self.weights.merges[s], b[f"halves_{s}"]
            coarse = b[f"halves_{s + 1}"] if s + 1 < SCALES else out
            cut, out_c = configs.find("merge", c, self.storage), product.weight.shape[0]
            yield Launch(
                dense.merge_kernel, (triton.cdiv(h * w, cut.block_m), triton.cdiv(out_c, cut.block_n), self.n),
                (b[f"maps_{s}"], coarse, *product, out, b["alphas"][rows - 1], b["closed"], b[f"slots_{rows % 2}"],
                 b["sample_macs"], self.n, s, DECODER, 3, w, h * w, c, out_c),
                # five loads of a step are on their way together: more of them would want much shared memory
                {"HAS_COARSE": s + 1 < SCALES, **_PATHS, **cut.product(), "num_stages": min(cut.num_stages, 2)},
            )  # fmt: skip
        h, w, c = self._size(0)
        yield self._conv(
            b["halves_0"], self.weights.predictor, b["small_logits"], (h, w), (h, w), DECODER,
            to=(1, h * w), of=(c, 1), STRIDE=1, PADDING=1, RELU=False,
        )  # fmt: skip


def gate_tiles(config: NetworkConfig, h: int, w: int, scale: int, storage: Any) -> tuple[int, int, int]:
    """Of the map [h, w] that a scale's gates pool, or its quarter: width, pixels, and how many tiles they are."""
    if config.small_gate:
        h, w = h // 4, w // 4
    return w, h * w, triton.cdiv(h * w, configs.find("gate", config.channels << scale, storage).block_m)


def gate_sums(config: NetworkConfig, n: int, h: int, w: int, storage: Any) -> int:
    """Values that the sums of a scale's gates take, of images [n, in_channels, h, w]."""
    sizes = (
        n * gate_tiles(config, h >> s + 2, w >> s + 2, s, storage)[2] * (config.channels << s) // 2
        for s in range(SCALES)
    )
    return max(sizes)
