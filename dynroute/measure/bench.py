"""A network all open against routed, for several batch sizes: what `dynroute bench` runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from dynroute.measure.opened import open_model
from dynroute.measure.results import Bench
from dynroute.measure.timing import random_patterns, time_routes
from dynroute.models.network import DynamicNetwork

SIZE = (512, 1024)
PATTERNS = (0.3, 0.5, 0.7, 1.0)
SEED = 0
# Different routes cost differently: at batch 1 a round goes over this many images (or patterns).
IMAGES = 8
PATTERNS_EACH = 3


def bench(
    net: DynamicNetwork,
    label: str,
    images: Tensor | None,
    batches: Sequence[int],
    repeats: int,
    backend: str = "auto",
    size: tuple[int, int] = SIZE,
    with_eager: bool = True,
    storage: str = "float32",
    device: torch.device | None = None,
    trained: bool = True,
) -> Bench:
    """Times `net`: on `images` [M,3,H,W] with its own gates, or, without images, on random patterns at `size`.

    Args:
        label: the network's name in the result.
        batches: images at once, a row each (and pattern).
        repeats: rounds after a warm-up.
        backend, storage, device: as in `open_model`.
        with_eager: eager PyTorch, channels_last, takes part.
        trained: whether the weights mean anything, for the result.
    """
    model = open_model(net, backend, storage, device)
    eager = open_model(copy.deepcopy(net), "eager", device=model.device).net if with_eager else None
    runs: list[tuple[str, list[Tensor], list[Tensor | None]]] = []
    for batch in batches:
        if images is not None:
            whole = images[: max(batch, len(images) // batch * batch)].to(model.device)
            parts = list(whole.split(batch))
            runs.append(("own gates", parts, [None] * len(parts)))
            continue
        generator = torch.Generator().manual_seed(SEED)
        count = PATTERNS_EACH if batch == 1 else 1
        noise = torch.randn(batch, net.config.in_channels, *size, generator=generator)
        noise = noise.to(model.device, memory_format=torch.channels_last)
        for share in PATTERNS:
            patterns = random_patterns(net.config.layers, share, batch * count, SEED)
            runs.append((f"{share:.0%} of nodes", [noise] * count, list(patterns.to(model.device).split(batch))))
    rows = []
    with tqdm(total=len(runs) * (repeats + 1), desc="bench", unit="round", delay=2, leave=False) as bar:
        for routes, parts, gates in runs:
            rows.append(time_routes(model, parts, gates, repeats, eager, lambda: bar.update(), routes))
    return Bench(
        model=label,
        backend=model.label,
        trained=trained,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else "cpu",
        storage=storage,
        seed=SEED,
        results=rows,
    )
