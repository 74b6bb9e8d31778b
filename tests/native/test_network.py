"""The network as one operator against a plain PyTorch composition of it, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynroute.native import library, network
from dynroute.native.contract import ACTIVATIONS, ConfigNumbers, WeightField, table_rows
from dynroute.runtime.weights import layouts as packing

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))

UP, KEEP, DOWN = 0, 1, 2


def scales(layer: int) -> int:
    """Nodes of a row: 0 is the init cell."""
    return 1 if layer == 0 else min(layer + 1, 4)


@dataclass
class Net:
    """Random weights with BatchNorm already folded, and both ways to run them."""

    layers: int = 5
    channels: int = 8
    stem_width: int = 16
    classes: int = 5
    activation: str = "tanh"
    small_gate: bool = False
    stacks: int = 2
    bias: float = 0.3
    seed: int = 0
    in_channels: int = 3

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)
        self.tensors: dict[tuple[int, int], Tensor] = {}  # (row, field) -> weight in torch's shape
        c, w = self.channels, self.stem_width
        for row in range(self.layers + 1):
            for s in range(scales(row)):
                at, n = row * 4 + s, c << s
                for k in range(self.stacks):
                    self.put(at, 3 * k, (n, 1, 3, 3), 0.4)
                    self.put_conv(at, 3 * k + 1, (n, n, 1, 1))
                gates = 1
                if self.has(row, s, UP):
                    self.put_conv(at, 9, (n // 2, n, 1, 1))
                    gates += 1
                if self.has(row, s, DOWN):
                    self.put_conv(at, 11, (2 * n, n, 1, 1))
                    gates += 1
                self.put_conv(at, 13, (n // 2, n, 1, 1))
                self.put(at, 15, (gates, n // 2), 2.0 / (n // 2) ** 0.5)
                self.put(at, 16, (gates,), 1.0)
                self.tensors[at, 16] += self.bias
        stem = (self.layers + 1) * 4
        self.put_conv(stem, 0, (w, self.in_channels, 3, 3))
        self.put(stem, 2, (w, 1, 3, 3), 0.4)
        self.put_conv(stem, 3, (w, w, 1, 1))
        self.put(stem, 5, (w, 1, 3, 3), 0.4)
        self.put_conv(stem, 6, (c, w, 1, 1))
        for s in range(4):
            self.put_conv(stem + 1 + s, 0, (c if s == 0 else (c << s) // 2, c << s, 1, 1))
        self.put_conv(stem + 5, 0, (self.classes, c, 3, 3))

    def put(self, row: int, field: int, shape: tuple[int, ...], scale: float) -> None:
        self.tensors[row, field] = torch.randn(shape, generator=self.generator) * scale

    def put_conv(self, row: int, field: int, shape: tuple[int, ...]) -> None:
        self.put(row, field, shape, (2 / (shape[1] * shape[2] * shape[3])) ** 0.5)
        self.put(row, field + 1, shape[:1], 0.1)

    def has(self, row: int, s: int, path: int) -> bool:
        if path == KEEP:
            return True
        return row < self.layers and (s > 0 if path == UP else s < 3)

    def conv(self, row: int, field: int, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.tensors[row, field], self.tensors[row, field + 1], **options)

    def stage(self, row: int, field: int, x: Tensor, stride: int = 1) -> Tensor:
        x = F.conv2d(x, self.tensors[row, field], padding=1, stride=stride, groups=x.shape[1])
        return self.conv(row, field + 1, x)

    # the plain composition

    def alphas(self, row: int, s: int, x: Tensor, forced: Tensor | None) -> Tensor:
        result = torch.zeros(3)
        order = [p for p in (KEEP, UP, DOWN) if self.has(row, s, p)]
        if forced is not None:
            values = forced[row, s, order]
        elif self.activation == "fixed":
            values = torch.ones(len(order))
        else:
            if self.small_gate:
                x = F.interpolate(x, scale_factor=0.25, mode="bilinear", recompute_scale_factor=False)
            x = self.conv(row * 4 + s, 13, x).relu().mean((2, 3))
            x = F.linear(x, self.tensors[row * 4 + s, 15], self.tensors[row * 4 + s, 16])[0]
            values = {"tanh": lambda: x.tanh().relu(), "sigmoid": x.sigmoid, "softmax": lambda: x.softmax(0)}[
                self.activation
            ]()
        result[order] = values
        return result

    def plain(self, image: Tensor, forced: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """logits, alphas and executed (row, scale, [cell, up, keep, down]) of one image [1, in_channels, H, W]."""
        stem = (self.layers + 1) * 4
        x = self.conv(stem, 0, image, stride=2).relu()
        x = self.stage(stem, 2, x).relu()
        x = self.stage(stem, 5, x, 2).relu()
        gates = torch.zeros(self.layers + 1, 4, 3)
        executed = torch.zeros(self.layers + 1, 4, 4, dtype=torch.bool)
        inputs: list[Tensor | None] = [x, None, None, None]
        for row in range(self.layers + 1):
            after: list[Tensor | None] = [None] * 4
            for s, x in enumerate(inputs):
                if x is None:
                    continue
                alpha = gates[row, s] = self.alphas(row, s, x, forced)
                at = row * 4 + s
                terms: dict[int, Tensor] = {}
                if alpha.sum() < 1e-4:
                    terms[s] = x
                else:
                    y = x
                    for k in range(self.stacks):
                        y = self.stage(at, 3 * k, y)
                        y = y.relu() if k < self.stacks - 1 else y
                    h = (x + y).relu()
                    executed[row, s, 0] = True
                    executed[row, s, 1:] = alpha > 1e-4
                    alpha = torch.where(alpha > 1e-4, alpha, 0)
                    terms[s] = alpha[KEEP] * h
                    if self.has(row, s, UP):
                        up = self.conv(at, 9, h).relu()
                        terms[s - 1] = alpha[UP] * F.interpolate(up, scale_factor=2, mode="bilinear")
                    if self.has(row, s, DOWN):
                        terms[s + 1] = alpha[DOWN] * self.conv(at, 11, h, stride=2).relu()
                for target, term in terms.items():
                    before = after[target]
                    after[target] = term if before is None else before + term
            inputs = after
        y = None
        for s in reversed(range(4)):
            x = inputs[s]
            if x is None:
                x = torch.zeros(1, self.channels << s, image.shape[2] >> (s + 2), image.shape[3] >> (s + 2))
            y = x if y is None else x + F.interpolate(y, scale_factor=2, mode="bilinear")
            y = self.conv(stem + 1 + s, 0, y).relu()
        y = self.conv(stem + 5, 0, y, padding=1)
        return F.interpolate(y, scale_factor=4, mode="bilinear"), gates, executed

    # the operator

    def packed(self, poison: set[int] | None = None) -> tuple[Tensor, Tensor]:
        """Blob and table; rows in `poison` hold NaN."""
        table = torch.full((table_rows(self.layers), WeightField.TABLE_FIELDS), -1, dtype=torch.int64)
        parts, size = [], 0
        for (row, field), value in self.tensors.items():
            if value.dim() == 4:
                depthwise = value.shape[1] == 1 and (row, field) != ((self.layers + 1) * 4, 0)
                value = packing.pack_depthwise(value) if depthwise else packing.pack_weights(value)
            elif value.dim() == 1 and field != 16:
                value = packing.pack_shift(value)
            value = value.flatten()
            if poison and row in poison:
                value = torch.full_like(value, float("nan"))
            table[row, field] = size
            value = F.pad(value, (0, -len(value) % 16))
            parts.append(value)
            size += len(value)
        return torch.cat(parts), table

    @property
    def config(self) -> ConfigNumbers:
        activation = ACTIVATIONS.index(self.activation)
        sizes = (self.layers, self.channels, self.stem_width, self.classes)
        return ConfigNumbers(*sizes, activation, self.small_gate, self.stacks, 0, self.in_channels)

    def native(self, images: Tensor, forced: Tensor | None = None, poison: set[int] | None = None, **crop: int):
        n, _, h, w = images.shape
        workspace = torch.full((network.network_workspace(n, h, w, self.config),), float("nan"))
        logits = torch.full((n, self.classes, crop.get("out_h", h), crop.get("out_w", w)), float("nan"))
        return logits, *network.network_forward(images, *self.packed(poison), self.config, forced, workspace, logits)


def images(n: int, h: int, w: int, seed: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, h, w, generator=torch.Generator().manual_seed(seed))


def random_gates(net: Net, n: int, closed: float, seed: int = 3) -> Tensor:
    """Alphas with closed paths, and with whole nodes closed."""
    generator = torch.Generator().manual_seed(seed)
    gates = torch.rand(n, net.layers + 1, 4, 3, generator=generator)
    gates *= torch.rand(n, net.layers + 1, 4, 3, generator=generator) > 0.3
    return gates * (torch.rand(n, net.layers + 1, 4, 1, generator=generator) > closed)


def compare(net: Net, x: Tensor, forced: Tensor | None = None) -> None:
    logits, gates, nodes, _ = net.native(x, forced)
    for i in range(len(x)):
        plain, plain_gates, executed = net.plain(x[i : i + 1], None if forced is None else forced[i])
        torch.testing.assert_close(gates[i], plain_gates, rtol=1e-4, atol=1e-5)
        tolerance = 2e-5 * plain.abs().max().item()
        torch.testing.assert_close(logits[i : i + 1], plain, rtol=1e-4, atol=tolerance)
        executed[:, :, 2] = False  # keep does none
        assert torch.equal(nodes[i, :, :, 1:] > 0, executed)
        if forced is None and net.activation != "fixed":
            assert torch.equal(nodes[i, :, :, 0] > 0, plain_gates.sum(-1) > 0) or (plain_gates == 0).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str) -> None:
    compare(Net(activation=activation), images(2, 64, 96))


@pytest.mark.parametrize("stacks", [1, 2, 3])
@pytest.mark.parametrize("h, w", [(32, 64), (160, 128)])
def test_stacks_and_sizes(stacks: int, h: int, w: int) -> None:
    """160 x 128 fuses the stages at scale 1/4 and not below; 32 x 64 fuses none."""
    compare(Net(stacks=stacks, layers=4), images(2, h, w))


def test_small_gate() -> None:
    compare(Net(small_gate=True, layers=4), images(2, 128, 160))


@pytest.mark.parametrize("in_channels", [1, 2, 4, 7, 130])
def test_images_of_any_number_of_channels(in_channels: int) -> None:
    """Of more than 128 channels the stem's taps are gathered, of fewer read where they lie."""
    compare(Net(layers=4, stem_width=24, in_channels=in_channels), images(2, 64, 96, channels=in_channels))


def test_wide_stem_many_classes() -> None:
    compare(Net(channels=16, stem_width=64, classes=19, layers=4), images(1, 64, 64))


@pytest.mark.parametrize("closed", [0.3, 0.5, 0.7, 1.0])
def test_forced_gates(closed: float) -> None:
    net = Net(layers=6)
    compare(net, images(4, 64, 64), random_gates(net, 4, closed))


def test_closed_gates() -> None:
    """Real gates that close some nodes and some paths."""
    net = Net(layers=6, bias=-0.5)
    compare(net, images(5, 64, 96))


@pytest.mark.parametrize("n", [0, 1])
def test_batch_of(n: int) -> None:
    logits, gates, nodes, other = Net(layers=4).native(images(n, 32, 32))
    assert logits.shape == (n, 5, 32, 32) and gates.shape == (n, 5, 4, 3)
    assert nodes.shape == (n, 5, 4, 5) and other.shape == (n, 3)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_batch_never_changes_a_sample(threads: int) -> None:
    net = Net(layers=5, channels=16, bias=-0.2)
    x = images(3, 160, 128)
    before = torch.get_num_threads()
    alone = [net.native(x[i : i + 1]) for i in range(3)]
    try:
        torch.set_num_threads(threads)
        batch = net.native(x)
    finally:
        torch.set_num_threads(before)
    for field in range(3):
        assert torch.equal(batch[field], torch.cat([run[field] for run in alone]))
    # the halo is a matter of the plan, which may follow the open samples and the threads
    assert torch.equal(batch[3][:, :2], torch.cat([run[3][:, :2] for run in alone]))


def test_crop() -> None:
    net = Net(layers=4)
    x = images(2, 64, 64)
    whole = net.native(x)[0]
    assert torch.equal(net.native(x, out_h=45, out_w=61)[0], whole[:, :, :45, :61])


def test_closed_nodes_do_not_touch_their_weights() -> None:
    net = Net(layers=5)
    forced = random_gates(net, 2, 0.0) * 0.5 + 0.5
    forced[:, 2, 1] = 0
    forced[:, 4, 3] = 0
    x = images(2, 64, 64)
    expected = net.native(x, forced)
    poisoned = net.native(x, forced, poison={2 * 4 + 1, 4 * 4 + 3})
    for a, b in zip(expected, poisoned):
        assert torch.equal(a, b) and a.isfinite().all()


def test_counts() -> None:
    """Executed multiply-accumulates are the convolutions' at true sizes; a tile left out is missed."""
    net = Net(layers=4, activation="fixed")
    x = images(2, 160, 128)
    _, _, nodes, other = net.native(x)
    for row in range(5):
        for s in range(scales(row)):
            c, pixels = net.channels << s, (160 >> (s + 2)) * (128 >> (s + 2))
            up = pixels * c * c // 2 if net.has(row, s, UP) else 0
            down = pixels // 4 * c * 2 * c if net.has(row, s, DOWN) else 0
            assert nodes[0, row, s].tolist() == [0, 2 * pixels * c * (9 + c), up, 0, down]
    c, w = net.channels, net.stem_width
    first, last = 79 * 63, 40 * 32
    stem = first * (27 * w + 9 * w + w * w) + last * (9 * w + w * c)
    merges = sum((last >> (2 * s)) * (c << s) * (c if s == 0 else (c << s) // 2) for s in range(4))
    assert other[0, :2].tolist() == [stem, merges + last * 9 * c * net.classes]
    assert other[0, 2] > 0
    assert torch.equal(nodes[0], nodes[1]) and torch.equal(other[0], other[1])

    total = int(nodes.sum() + other[:, :2].sum())
    try:
        torch.ops.dynroute.debug_skip_tile(30)
        _, _, nodes, other = net.native(x)
    finally:
        torch.ops.dynroute.debug_skip_tile(-1)
    assert 0 < int(nodes.sum() + other[:, :2].sum()) < total


def test_errors() -> None:
    net = Net(layers=4)
    with pytest.raises(
        RuntimeError, match=r"images: wanted height and width in multiples of 32, at least 32, got 33x64"
    ):
        net.native(images(1, 33, 64))
    with pytest.raises(RuntimeError, match=r"gates: wanted shape \[1, 5, 4, 3\], got \[1, 4, 4, 3\]"):
        net.native(images(1, 32, 32), torch.ones(1, 4, 4, 3))
    weights, table = net.packed()
    logits = torch.empty(1, net.classes, 32, 32)
    with pytest.raises(RuntimeError, match=r"workspace: wanted \d+ floats, got 8"):
        network.network_forward(images(1, 32, 32), weights, table, net.config, None, torch.empty(8), logits)
    workspace = torch.empty(network.network_workspace(1, 32, 32, net.config))
    for wrong, message in (
        (logits[:, :2], r"logits: wanted shape \[1, \d+, \*, \*\], got \[1, 2, 32, 32\]"),
        (torch.empty(1, net.classes, 33, 32), r"logits: wanted at most 32x32 pixels, got 33x32"),
        (logits.transpose(2, 3), r"logits: wanted a contiguous tensor"),
    ):
        with pytest.raises(RuntimeError, match=message):
            network.network_forward(images(1, 32, 32), weights, table, net.config, None, workspace, wrong)
    with pytest.raises(RuntimeError, match=r"images: wanted shape \[\*, 3, \*, \*\], got \[1, 4, 32, 32\]"):
        network.network_forward(images(1, 32, 32, channels=4), weights, table, net.config, None, workspace, logits)
    with pytest.raises(RuntimeError, match=r"config: wanted at least 1 of in_channels, got 0"):
        network.network_workspace(1, 32, 32, net.config._replace(in_channels=0))
    with pytest.raises(RuntimeError, match=r"config: wanted 1 to 3 cell_stacks, got 4"):
        network.network_workspace(1, 32, 32, net.config._replace(cell_stacks=4))


def test_opcheck() -> None:
    net = Net(layers=4)
    x = images(1, 32, 64)
    workspace = torch.empty(network.network_workspace(1, 32, 64, net.config))
    args = (x, *net.packed(), net.config, None, workspace, torch.empty(1, net.classes, 30, 60))
    torch.library.opcheck(
        torch.ops.dynroute.network_forward.default, args, test_utils=("test_schema", "test_faketensor")
    )
