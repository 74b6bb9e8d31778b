"""The routed network: stem, init cell, grid of gated nodes, decoder, in plain PyTorch.

This is the definition (SPEC) and the trainer's forward; `dynroute.optimize` makes the runtime that skips.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from dynroute import ops
from dynroute.cost.tables import CostTables
from dynroute.files import write_whole
from dynroute.models import freezing, fused
from dynroute.models.config import NetworkConfig
from dynroute.models.decoder import LOGITS_FACTOR, Decoder
from dynroute.models.gate import Gate
from dynroute.models.layers import init_weights, upsample
from dynroute.models.node import RoutedNode
from dynroute.models.stem import Stem, pad_images
from dynroute.models.weights import CONFIG, MODEL, PREPROCESS
from dynroute.space.kept import kept
from dynroute.space.routing import arrivals, is_closed
from dynroute.space.wiring import DOWN, KEEP, SCALES, UP, Node, build_space, path_exists


@dataclass
class Output:
    """What a network returns for images [N,I,H,W].

    Attributes:
        low_logits: [N,K,h,w], the decoder's logits at a quarter of the padded image's size, which `logits` are the
            bilinear upsampling of; not of a runtime.
        gates: float32 [N,L+1,4,3], alphas in the order up, keep, down; row 0 the init cell; 0 where there is no path
            or the node is absent.
        expected_mflops: [N], soft cost of the space; real_mflops: [N], cost by open/closed, all at the padded size.
        costs: the tables that both were read from.
        size: H and W.
    """

    low_logits: Tensor
    gates: Tensor
    expected_mflops: Tensor
    real_mflops: Tensor
    costs: CostTables
    size: tuple[int, int]

    @cached_property
    def logits(self) -> Tensor:
        """[N,K,H,W].  Of a forward pass in training made when first read, as the loss may do without."""
        return full_logits(self.low_logits, self.size)


def full_logits(low_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits of the image [N,K,H,W] from those that `Decoder.low_logits` returns."""
    logits = upsample(low_logits, LOGITS_FACTOR)
    if logits.shape[-2:] == size:  # a slice that cuts nothing off would still cost its backward a full-size fill
        return logits
    return logits[..., : size[0], : size[1]]


class DynamicNetwork(nn.Module):
    """Dynamic routing network (Li et al., CVPR 2020).  See `create_model` and `NetworkConfig`.

    Attributes:
        preprocess: how images become its input, as plain values: `mean` and `std` of each channel, `order` (bgr or
            rgb), what else `dynroute.data.Normalise` has, and `class_names` where classes have names. Training and
            loading set it; None, which a new network has: nothing says.
    """

    train_ops = "reference"  # `dynroute.models.fused.use` sets it

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.space = build_space(config.layers)
        self.stem = Stem(config.channels, config.stem_width, config.in_channels)
        self.init = RoutedNode(self.space[0][0], config)
        self.grid = nn.ModuleList(nn.ModuleList(RoutedNode(node, config) for node in nodes) for nodes in self.space[1:])
        self.decoder = Decoder(config.channels, config.num_classes)
        init_weights(self)
        for gate in self.gates():
            gate.reset_bias()
        self.preprocess: dict[str, Any] | None = None
        self.group: str | None = None
        self.frozen: tuple[str, ...] = ()
        self.kept_norms: frozenset[str] = frozenset()  # names of BatchNorms that `freeze` keeps as they are
        self._bn = "all"

    def use_ops(self, choice: str) -> DynamicNetwork:
        """Chooses the operators that train; returns the network.

        "reference", which a new network has, is plain PyTorch; a backend's name takes fused operators; "auto" takes
        them where there are kernels for the network's device and is plain PyTorch elsewhere.

        Stem, sepconv cells, paths, gates' and decoder's 1x1 convolutions have fused operators, and the segmentation
        loss of `objective`; other cells, and evaluation, are plain PyTorch whatever is chosen.

        Raises:
            ValueError: an unknown name, or a backend that does not run here, with the reason.
        """
        fused.use(self, choice)
        plain = sorted({name for name in self.config.cell if not self.init.cell.is_separable})
        if choice != "reference" and plain:
            warnings.warn(f"ops: cells of {', '.join(plain)} have no fused form and stay plain PyTorch", stacklevel=2)
        return self

    def synchronise(self, group: str | None) -> DynamicNetwork:
        """Has all BatchNorms see one batch with those of other processes in training; returns the network.

        Statistics are then those of all processes' samples, whatever operators train; every process has to run the
        network, and its backward, the same number of times. `net.group` is the group; None, which a new network has,
        is this process alone.

        Args:
            group: torch.distributed's name of a process group, such as `dist.group.WORLD.group_name`.

        Raises:
            ValueError: no such group.
        """
        fused.join(self, group or "")
        self.group = group
        return self

    @property
    def ops(self) -> str:
        """What `use_ops` chose."""
        return self.train_ops

    @property
    def bn(self) -> str:
        """Which samples the BatchNorms see in training, and so what of it is computed.

        "all" (published): every sample, everything is computed. "open": a node's cell and paths leave closed samples
        out, and a path those that close it: of forward, backward and statistics; where none is open the running
        statistics stay. "frozen": the running statistics normalise, all BatchNorms keep them, and closed samples are
        left out, which then changes nothing but the work.

        Raises:
            ValueError: when set to another word, or to "open" for cells without a fused form.
        """
        return self._bn

    @bn.setter
    def bn(self, choice: str) -> None:
        if choice not in fused.BATCHNORM:
            raise ValueError(f"bn: wanted one of {', '.join(fused.BATCHNORM)}, got {choice!r}")
        nodes = [node for row in self.rows() for node in row]
        if choice == "open" and not all(node.cell.is_separable for node in nodes):
            raise ValueError(f"bn: 'open' needs sepconv cells of 3x3, this network's are {', '.join(self.config.cell)}")
        if choice == "open":
            freezing.check_nodes(self, self.kept_norms)
        thaws = "frozen" in (choice, self._bn)
        self._bn = choice
        for node in nodes:
            node.bn = choice
        if thaws:
            self.train(self.training)

    def freeze(self, *parts: str) -> DynamicNetwork:
        """Has parts stay as they are in training; returns the network.

        Their parameters get no gradient, and a BatchNorm whose scale and shift are among them normalises with its
        running statistics and keeps them. `net.frozen` is what was given.

        Args:
            parts: of "stem", "init", "grid", "gates", "decoder", or names that parameters begin with, such as
                "grid.3" or "decoder.predictor"; none of them thaws all.

        Raises:
            ValueError: no parameter is called so; or `bn` is "open" and a node is frozen in part.
        """
        freezing.freeze(self, parts)
        self.frozen = parts
        return self.train(self.training)

    def train(self, mode: bool = True) -> DynamicNetwork:
        """As `nn.Module.train`; BatchNorms with frozen statistics stay in evaluation mode."""
        super().train(mode)
        if mode:
            freezing.settle(self)
        return self

    def rows(self) -> list[list[RoutedNode]]:
        """The init cell's row, then the grid's."""
        return [[self.init], *(list(row.children()) for row in self.grid)]  # type: ignore[list-item]

    def gates(self) -> Iterable[Gate]:
        return (m for m in self.modules() if isinstance(m, Gate))

    def gate_parameters(self) -> list[nn.Parameter]:
        """Parameters of all gates, for a learning rate of their own."""
        return [p for gate in self.gates() for p in gate.parameters()]

    def costs(self, height: int, width: int, *, published_decoder: bool = False) -> CostTables:
        """`NetworkConfig.costs` of this network."""
        return self.config.costs(height, width, published_decoder=published_decoder)

    def forward(
        self, images: Tensor, gates: Tensor | None = None, progress: float | Tensor | None = None, bridge: float = 0.0
    ) -> Output:
        """Runs the network.

        Args:
            images: float [N,I,H,W] with the configuration's `in_channels`, already normalised, any H and W >= 1.
            gates: float [N,L+1,4,3] or [L+1,4,3] alphas to force; ignored where there is no path.
            progress: 0..1, position in training, for scheduled drop path (training mode only; None: no drop); a scalar
                on the device where the call is recorded and the value changes.
            bridge: sum of alphas below which a node begins to pass its input (training mode only; see `Budget`).

        Raises:
            ValueError: images or gates of another shape.
        """
        forced = check_inputs(images, gates, self.config)
        x = pad_images(images, self.config.small_gate)
        maps, alphas = self._route(self.stem(x), forced, progress, bridge)
        size = (images.shape[-2], images.shape[-1])
        costs = costs_on(self.config, *size, images.device)
        low_logits = self.decoder.low_logits(maps)
        out = Output(low_logits, alphas, costs.expected(alphas), costs.real(alphas), costs, size)
        if not self.training:
            out.logits = full_logits(low_logits, size)
        return out

    def _route(
        self, x: Tensor, forced: Tensor | None, progress: float | Tensor | None, bridge: float
    ) -> tuple[list[Tensor], Tensor]:
        """Stem map [N,C,h,w] -> the last row's maps per scale, and the gates [N,L+1,4,3].

        In evaluation a node whose inputs are all absent is absent, per sample: masks, since everything is dense here.
        """
        n = x.shape[0]
        zero = torch.zeros(n, 3, device=x.device)
        present = torch.ones(n, SCALES, dtype=torch.bool, device=x.device)  # of this row's nodes
        inputs: list[Tensor] = [x]
        table: list[Tensor] = []
        rows = self.rows()
        for r, nodes in enumerate(rows):
            of_row, outputs = [], []
            for node, x_s in zip(nodes, inputs, strict=True):
                s = node.node.scale
                alphas = node.gate(x_s) if forced is None else forced[:, r, s]
                if not self.training:
                    alphas = torch.where(present[:, s, None], alphas, 0.0)
                outputs.append(node(x_s, alphas, self._keep_prob(r, progress), bridge))
                of_row.append(alphas)
            table.append(torch.stack(of_row + [zero] * (SCALES - len(nodes)), dim=1))
            if r + 1 < len(rows):
                inputs = _pull(self.space[r + 1], outputs, self.ops if fused.is_on(self) else "reference")
                if not self.training:
                    exists = _paths_on(self.config.layers, x.device)[r]
                    present = arrivals(~is_closed(table[r]) & present, present, exists)
        last = [out[KEEP] for out in outputs]
        return last, torch.stack(table, dim=1)  # type: ignore[return-value]

    def _keep_prob(self, row: int, progress: float | Tensor | None) -> float | Tensor:
        """p = 1 - progress * (l+1)/L * drop_prob; the init cell is l = -1 and never dropped."""
        if not self.training or progress is None or row == 0 or self.config.drop_prob == 0:
            return 1.0
        return 1.0 - progress * row / self.config.layers * self.config.drop_prob

    def save_pretrained(self, folder: str | Path) -> Path:
        """Writes `config.json`, `model.safetensors` and `preprocess.json` into `folder` (made if missing).

        Each is the old file or the new one at any time. Without `preprocess` there is no `preprocess.json`, and a
        warning: nobody could tell then how images become the network's input.

        Raises:
            OSError: a file cannot be written, with its name.
        """
        folder = Path(folder)
        state = {k: v.detach().contiguous().cpu() for k, v in self.state_dict().items()}
        if self.preprocess is None:
            (folder / PREPROCESS).unlink(missing_ok=True)  # another network's
            warnings.warn(
                f"{folder}: no {PREPROCESS}, as net.preprocess is None, and dynroute eval and segment ask for it; set "
                'it to how images become the input, such as {"mean": [103.53, 116.28, 123.675], "std": [1, 1, 1], '
                '"order": "bgr"}',
                stacklevel=2,
            )
        write_whole(folder / MODEL, safetensors.torch.save(state, {"format": "pt"}))
        write_whole(folder / CONFIG, json.dumps(asdict(self.config), indent=2) + "\n")
        if self.preprocess is not None:
            write_whole(folder / PREPROCESS, json.dumps(self.preprocess, indent=2) + "\n")
        return folder


def _pull(nodes: tuple[Node, ...], outputs: list[list[Tensor | None]], backend: str) -> list[Tensor]:
    """Each next node's input, summed in the fixed order down, keep, up; by a fused operator unless the backend is
    "reference"."""
    inputs = []
    for node in nodes:
        wired = ((DOWN, node.scale - 1), (KEEP, node.scale), (UP, node.scale + 1))
        down, keep, up = (outputs[source][path] if node.sources[path] else None for path, source in wired)
        if backend != "reference" and sum(term is not None for term in (down, keep, up)) > 1:
            inputs.append(ops.aggregate(down, keep, up, backend=backend))
            continue
        x, *others = [t for t in (down, keep, upsample(up, 2) if up is not None else None) if t is not None]
        for term in others:
            x = x + term
        inputs.append(x)
    return inputs


def check_inputs(images: Tensor, gates: Tensor | None, config: NetworkConfig) -> Tensor | None:
    """Checks images [N,I,H,W] and forced gates; returns the gates as float32 [N,L+1,4,3] with 0 where no path is."""
    of_image = images.dim() == 4 and images.shape[1] == config.in_channels and min(images.shape[2:]) >= 1
    if not of_image or not images.is_floating_point():
        raise ValueError(f"images: wanted float [N,{config.in_channels},H,W], got {images.dtype} {list(images.shape)}")
    if gates is None:
        return None
    wanted = (images.shape[0], config.layers + 1, SCALES, 3)
    if tuple(gates.shape) == wanted[1:]:
        gates = gates.expand(wanted)
    if tuple(gates.shape) != wanted:
        raise ValueError(f"gates: wanted [N,L+1,4,3] = {list(wanted)} or without N, got {list(gates.shape)}")
    return torch.where(_paths_on(config.layers, images.device), gates.to(images.device, torch.float32), 0.0)


def _paths_on(layers: int, device: torch.device) -> Tensor:
    """`path_exists` on a device."""
    return path_exists(layers) if device.type == "cpu" else _paths_brought(layers, device)


@kept
def costs_on(config: NetworkConfig, height: int, width: int, device: torch.device) -> CostTables:
    """`NetworkConfig.costs` on a device, kept there as paths are."""
    return config.costs(height, width).to(device)


@kept
def _paths_brought(layers: int, device: torch.device) -> Tensor:
    """Kept on a GPU: bringing it there would be a wait in every call."""
    return path_exists(layers).to(device)
