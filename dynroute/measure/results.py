"""What measurements found: plain values that are written as JSON, printed and drawn."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float

    @staticmethod
    def of(values: np.ndarray) -> Spread:
        """Those of a list of numbers."""
        low, middle, high = np.percentile(values, [10, 50, 90])
        return Spread(float(middle), float(low), float(high))


@dataclass(frozen=True)
class RouteTimes:
    """All open against routed, on some images.

    Attributes:
        routes: what was routed, in words.
        batch, images: images at once, and in all.
        size: height and width in pixels.
        repeats: rounds.
        ms_per_image: milliseconds by contestant: all_open, routed, and eager where it took part.
        executed_macs: per image: all_open, routed.
        open_nodes: share of the grid's nodes that were computed.
        time_ratio, work_ratio: T_open / T_routed by medians, and work_open / work_routed.
        realised_share: the first over the second; realised_spread: its 10th and 90th percentile over rounds.
    """

    routes: str
    batch: int
    images: int
    size: tuple[int, int]
    repeats: int
    ms_per_image: dict[str, Spread]
    executed_macs: dict[str, float]
    open_nodes: float
    time_ratio: float
    work_ratio: float
    realised_share: float
    realised_spread: tuple[float, float]

    @staticmethod
    def from_json(row: dict[str, Any]) -> RouteTimes:
        """From what `dataclasses.asdict` made. Raises TypeError or KeyError where something is missing."""
        times = {name: Spread(**spread) for name, spread in row["ms_per_image"].items()}
        size, spread = tuple(row["size"]), tuple(row["realised_spread"])
        return RouteTimes(**{**row, "ms_per_image": times, "size": size, "realised_spread": spread})


@dataclass(frozen=True)
class Bench:
    """What was timed, and where.

    Attributes:
        model: as the user named it.
        backend: one phrase that says what computed.
        trained: False for random weights, whose routes are random patterns.
        threads: torch's.
        device: "cpu", or the GPU's name.
        storage: of maps and pointwise weights.
        seed: of images and patterns.
        results: a row for each batch size and pattern.
        machine: where; None in the process that measured.
    """

    model: str
    backend: str
    trained: bool
    threads: int
    device: str
    storage: str
    seed: int
    results: list[RouteTimes]
    machine: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; the machine is written by whoever writes the file."""
        return {key: value for key, value in asdict(self).items() if key != "machine"}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Bench:
        """From a file of `dynroute bench --json`; other keys are passed over. Raises KeyError or TypeError."""
        fields = {name: record[name] for name in Bench.__dataclass_fields__ if name not in ("results", "machine")}
        rows = [RouteTimes.from_json(row) for row in record["results"]]
        return Bench(**fields, results=rows, machine=record.get("machine"))


@dataclass(frozen=True)
class GateStatistics:
    """Over a data set, [L+1][4][3] each, paths in the order up, keep, down: how often open, and mean alpha."""

    paths: list[str]
    open_probability: list[Any]
    mean_alpha: list[Any]


@dataclass(frozen=True)
class RouteStatistics:
    """The routes that images took; a route is which paths are open.

    Attributes:
        images: how many there are; of several passes of an image each counts.
        layers: of the grid.
        open_nodes, open_paths: shares of the grid's nodes and of all paths, the init cell's too, means over images.
        distinct: how many different routes; largest: share of the images that take the most frequent one.
        entropy_bits: of their distribution: 0 where all take one, log2(images) where each has its own.
        closed, absent: nodes of the grid that no image opens, as (layer, n) at scale 1/n: some image reaches the
            former, none the latter.
    """

    images: int
    layers: int
    open_nodes: float
    open_paths: float
    distinct: int
    largest: float
    entropy_bits: float
    closed: list[tuple[int, int]]
    absent: list[tuple[int, int]]


@dataclass(frozen=True)
class Evaluation:
    """Quality, cost and routes over a data set.

    Attributes:
        miou, pixel_accuracy: None where nothing is labelled; iou: by class, None for an absent one.
        images: how many; passes: forwards of an image.
        costs: per image, means over the images, each summed over its passes: expected_mflops, real_mflops; from a
            runtime executed_macs and executed_space_macs; all_open_expected_mflops and all_open_real_mflops where the
            model tells its costs.
        gates, routes: None without images.
        per_image: name, miou and the same costs of each.
    """

    miou: float | None
    pixel_accuracy: float | None
    iou: dict[str, float | None]
    images: int
    passes: int
    costs: dict[str, float]
    gates: GateStatistics | None
    routes: RouteStatistics | None
    per_image: list[dict[str, Any]]

    @property
    def shares(self) -> tuple[float, float] | None:
        """Expected and real cost of the space, as shares of it all open; real without gates, stem and decoder. None
        where the model does not tell its costs."""
        full = self.costs.get("all_open_expected_mflops")
        if not full:
            return None
        around = self.costs["all_open_real_mflops"] - full
        return self.costs["expected_mflops"] / full, (self.costs["real_mflops"] - around) / full

    def to_json(self) -> dict[str, Any]:
        """Plain values, the costs among the others."""
        record = asdict(self)
        costs, gates, routes, per_image = (record.pop(name) for name in ("costs", "gates", "routes", "per_image"))
        return {**record, **costs, "gates": gates or {}, "routes": routes or {}, "per_image": per_image}


@dataclass
class Sample:
    """One validation image through the runtime.

    Attributes:
        index, name: in the data set.
        right: share of labelled pixels that are right; None where none is labelled.
        executed, space: executed MACs, in all and in the routing space.
        full_executed, full_space: the same with everything open, at this image's size.
        expected, real, full_expected, full_real: MFLOPs, the paper's.
        gates: float32 [L+1,4,3]; nodes: int64 [L+1,4,5].
    """

    index: int
    name: str
    right: float | None
    executed: int
    space: int
    full_executed: int
    full_space: int
    expected: float
    real: float
    full_expected: float
    full_real: float
    gates: Tensor
    nodes: Tensor

    @property
    def share(self) -> float:
        """Executed work as a share of all open."""
        return self.executed / self.full_executed


@dataclass
class Findings:
    """All samples, and what follows from them together."""

    samples: list[Sample]
    miou: float
    iou: list[float]
    pixel_accuracy: float

    @property
    def gates(self) -> Tensor:
        """float32 [M,L+1,4,3] of all samples."""
        return torch.stack([sample.gates for sample in self.samples])

    @property
    def shares(self) -> tuple[float, float]:
        """Expected and real cost of the space, as shares of it all open; real without gates, stem and decoder."""
        full = self.mean("full_expected")
        around = self.mean("full_real") - full
        return self.mean("expected") / full, (self.mean("real") - around) / full

    def mean(self, name: str) -> float:
        """Mean over samples of one of `Sample`'s numbers."""
        return float(np.mean([getattr(sample, name) for sample in self.samples]))
