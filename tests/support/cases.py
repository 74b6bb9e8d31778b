"""Inputs of every operator, for the tests: one builder per operator, returning its positional arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from dynroute.space.wiring import DOWN, UP

ODD_SIZES = [(1, 1), (7, 5), (13, 9), (33, 34)]
CHANNELS = [8, 16, 24, 32, 64, 128, 256]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed)).mul(scale).to(dtype)


def masks(n: int) -> dict[str, Tensor | None]:
    """None, no sample, some samples, all samples."""
    some = torch.arange(n) % 2 == 0
    return {
        "absent": None,
        "none": torch.zeros(n, dtype=torch.bool),
        "some": some,
        "all": torch.ones(n, dtype=torch.bool),
    }


def sepconv(
    n: int, c: int, h: int, w: int, stages: int = 2, out: int | None = None, dtype: torch.dtype = torch.float32
):
    channels = [c] * stages + [out or c]
    depthwise = [normal(channels[k], 1, 3, 3, dtype=dtype, scale=1 / 3, seed=10 + k) for k in range(stages)]
    pointwise = [
        normal(channels[k + 1], channels[k], 1, 1, dtype=dtype, scale=channels[k] ** -0.5, seed=20 + k)
        for k in range(stages)
    ]
    scale = [1 + 0.2 * normal(channels[k + 1], dtype=dtype, seed=30 + k) for k in range(stages)]
    shift = [0.3 * normal(channels[k + 1], dtype=dtype, seed=40 + k) for k in range(stages)]
    return normal(n, c, h, w, dtype=dtype), depthwise, pointwise, scale, shift


def transform(n: int, c: int, h: int, w: int, out: int, dtype: torch.dtype = torch.float32):
    weight = normal(out, c, 1, 1, dtype=dtype, scale=c**-0.5, seed=1)
    return (
        normal(n, c, h, w, dtype=dtype),
        weight,
        1 + 0.2 * normal(out, dtype=dtype, seed=2),
        normal(out, dtype=dtype, seed=3),
    )


def running(channels: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A BatchNorm's running mean and variance."""
    return 0.1 * normal(channels, dtype=dtype, seed=50 + seed), 0.5 + normal(channels, dtype=dtype, seed=60 + seed) ** 2


def sepconv_train(
    n: int, c: int, h: int, w: int, stages: int = 2, out: int | None = None, dtype: torch.dtype = torch.float32
):
    """The first stage goes from c to `out` channels, the others stay there."""
    x, *first = sepconv(n, c, h, w, 1, out, dtype)
    _, *others = sepconv(0, out or c, h, w, stages, None, dtype)
    mean, var = zip(*(running(out or c, dtype, k) for k in range(stages)))
    return x, *(a + b[1:] for a, b in zip(first, others)), list(mean), list(var)


def transform_train(n: int, c: int, h: int, w: int, out: int, dtype: torch.dtype = torch.float32):
    return *transform(n, c, h, w, out, dtype), *running(out, dtype)


def node_train(n: int, c: int, h: int, w: int, stages: int = 2, paths: str = "ud", dtype: torch.dtype = torch.float32):
    """x, alphas (sample 1 closed, sample 2's down too), weights; `paths` names those that are there."""
    x, dw, pw, *norms = sepconv_train(n, c, h, w, stages, dtype=dtype)
    alphas = normal(n, 3, dtype=dtype, seed=8).abs() * 0.5 + 0.1
    alphas[1:2] = 0
    alphas[2:3, DOWN] = 0
    weights = []
    for name, out in (("u", c // 2), ("d", 2 * c)):
        if name not in paths:
            alphas[:, UP if name == "u" else DOWN] = 0
            weights.append(None)
            continue
        _, weight, *norm = transform_train(n, c, h, w, out, dtype)
        weights.append(weight)
        norms = [[*have, more] for have, more in zip(norms, norm)]
    return x, alphas, dw, pw, *weights, *norms


def upsampled_cross_entropy(
    n: int, k: int, h: int, w: int, factor: int = 4, crop: tuple[int, int] = (0, 0), dtype: torch.dtype = torch.float32
):
    """Logits and labels, a fifth of these ignored; `crop`: rows and columns that the labels lack."""
    labels = torch.randint(0, k, (n, factor * h - crop[0], factor * w - crop[1]), generator=generator(1))
    ignored = torch.rand(labels.shape, generator=generator(2)) < 0.2
    return normal(n, k, h, w, dtype=dtype, scale=3), labels.masked_fill(ignored, 255)


def gate(n: int, c: int, h: int, w: int, gates: int = 3, dtype: torch.dtype = torch.float32):
    fc_weight = normal(gates, c // 2, 1, 1, dtype=dtype, scale=(c // 2) ** -0.5, seed=4)
    return *transform(n, c, h, w, c // 2, dtype), fc_weight, 0.5 + 0.5 * normal(gates, dtype=dtype, seed=5)


def gate_train(
    n: int, c: int, h: int, w: int, gates: int = 3, m: int | None = None, dtype: torch.dtype = torch.float32
):
    """M channels behind the product, c / 2 unless they are given."""
    m = m or c // 2
    fc_weight = normal(gates, m, 1, 1, dtype=dtype, scale=m**-0.5, seed=4)
    return *transform_train(n, c, h, w, m, dtype), fc_weight, 0.5 + 0.5 * normal(gates, dtype=dtype, seed=5)


def aggregate(n: int, c: int, h: int, w: int, sources: str = "dku", dtype: torch.dtype = torch.float32):
    """down, keep, up, alphas; `sources` names those that are there."""
    down = normal(n, c, h, w, dtype=dtype, seed=1) if "d" in sources else None
    keep = normal(n, c, h, w, dtype=dtype, seed=2) if "k" in sources else None
    up = normal(n, c, h // 2, w // 2, dtype=dtype, seed=3) if "u" in sources else None
    return down, keep, up, torch.rand(n, 3, dtype=dtype, generator=generator(4)) + 0.1


def route(n: int, dtype: torch.dtype = torch.float32):
    g = generator(n)
    alphas = torch.rand(n, 4, 3, dtype=dtype, generator=g) * (torch.rand(n, 4, 3, generator=g) > 0.4)
    alphas *= torch.rand(n, 4, 1, generator=g) > 0.3
    present = torch.rand(n, 4, generator=g) > 0.2
    path_exists = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    return alphas, present, path_exists, torch.randint(0, 2, (n, 4), dtype=torch.int32, generator=g)
