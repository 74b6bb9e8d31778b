"""Tiles: where they lie, how logits are put together, and that a picture cut by them is segmented as a whole one."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import dynroute
from dynroute.data import Normalise
from dynroute.measure.opened import Model
from dynroute.measure.segment import Segmented, segment
from dynroute.measure.tiles import MOST_BYTES, Mosaic, Tiles, check_tile, cut, memory
from tests.support.networks import random_network

SIZES = [(64, 64), (65, 64), (100, 333), (200, 300), (31, 500), (513, 97)]
CUTS = [((64, 64), 32), ((64, 96), 32), ((96, 64), 0), ((128, 96), 64), ((32, 32), 0)]


@pytest.mark.parametrize("tile, overlap", CUTS)
@pytest.mark.parametrize("height, width", SIZES)
def test_tiles_lie_on_the_grid_overlap_and_cover(height: int, width: int, tile: tuple[int, int], overlap: int) -> None:
    tiles = cut(height, width, tile, overlap)
    if len(tiles) == 1:
        assert tiles == Tiles(height, width, (height, width), (0,), (0,))
        assert height <= tile[0] and width <= tile[1]
        return
    seen = np.zeros((height, width), dtype=bool)
    for index in range(len(tiles)):
        seen[tiles.window(index)] = True
    assert seen.all()
    for size, starts, side, most in zip((height, width), (tiles.tops, tiles.lefts), tiles.size, tile):
        assert side <= most and side % 32 == 0 and all(start % 32 == 0 for start in starts)
        assert starts[-1] + side == -(-size // 32) * 32
        assert all(start + side - following >= overlap for start, following in pairwise(starts))
        # no more tiles than it takes
        assert len(starts) == 1 or (len(starts) - 1) * (side - overlap) + overlap < -(-size // 32) * 32


@pytest.mark.parametrize("tile, overlap", CUTS)
@pytest.mark.parametrize("height, width", SIZES)
def test_logits_that_agree_come_back_as_they_were(height: int, width: int, tile: tuple[int, int], overlap: int) -> None:
    tiles = cut(height, width, tile, overlap)
    logits = torch.randn(5, height + 32, width + 32, generator=torch.Generator().manual_seed(0))
    mosaic = Mosaic(tiles, confidence=True)
    for index in range(len(tiles)):
        top, left = (part.start for part in tiles.window(index))
        assert not mosaic.whole
        mosaic.add(logits[:, top : top + tiles.size[0], left : left + tiles.size[1]])
    wanted = logits[:, :height, :width]
    assert mosaic.whole and mosaic.finite and mosaic.confidence is not None
    np.testing.assert_array_equal(mosaic.labels, wanted.argmax(0).numpy())
    np.testing.assert_allclose(mosaic.confidence / 65535, wanted.softmax(0).amax(0).numpy(), atol=2e-5)


def test_what_a_tile_says_at_its_rim_counts_for_nothing_and_between_the_two_are_mixed() -> None:
    tiles = cut(64, 160, (64, 96), 32)  # two tiles, that share columns 64 to 96
    assert tiles.lefts == (0, 64)
    first, second = torch.zeros(2, 64, 96), torch.zeros(2, 64, 96)
    first[1], second[0] = 1.0, 1.0
    first[:, :, -8:], second[:, :, :8] = torch.tensor([9e9, 0.0]).view(2, 1, 1), torch.tensor([0.0, 9e9]).view(2, 1, 1)
    mosaic = Mosaic(tiles, confidence=True)
    mosaic.add(first)
    mosaic.add(second)
    assert (mosaic.labels[:, :80] == 1).all() and (mosaic.labels[:, 80:] == 0).all()
    assert mosaic.confidence is not None
    sure = mosaic.confidence[0] / 65535
    full = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(sure[[0, 71, 88, 159]], full, atol=1e-4)
    # column 79 is half a pixel before the middle of the 16 over which one goes into the other
    weight = 1 - 7.5 / 16
    np.testing.assert_allclose(sure[79], 1 / (1 + np.exp(-(2 * weight - 1))), atol=1e-4)


@pytest.mark.parametrize("where", [(0, 0, 0), (1, 63, 95)])
def test_logits_that_are_not_finite_are_seen(where: tuple[int, int, int]) -> None:
    for value in (float("nan"), float("inf")):
        mosaic = Mosaic(cut(64, 96, None))
        logits = torch.zeros(2, 64, 96)
        logits[where] = value
        mosaic.add(logits)
        assert not mosaic.finite


def picture(height: int, width: int) -> np.ndarray:
    """Coarse blobs and noise, so that labels have regions, uint8 [H,W,3]."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)).repeat(16, axis=0).repeat(16, axis=1)
    noise = rng.integers(-20, 21, (height, width, 3))
    return np.clip(coarse[:height, :width] + noise, 0, 255).astype(np.uint8)


class Shallow(Model):
    """A network whose routes are given: along the finest scale alone, so that a pixel sees some 60 others around."""

    def __call__(self, images: torch.Tensor, gates: torch.Tensor | None = None) -> dynroute.RunOutput:
        if gates is None:
            gates = torch.zeros_like(self.open_gates())
            gates[:, 0, 0] = 1.0  # keep
        return super().__call__(images, gates)


def one(model: Model, image: np.ndarray, tile: tuple[int, int] | None, overlap: int, batch: int = 1) -> Segmented[str]:
    normalise = Normalise(std=(57.0, 57.0, 57.0))
    found = segment(model, [("a", image)], normalise, lambda h, w: cut(h, w, tile, overlap), batch=batch)
    return next(iter(found))


def test_tiles_of_the_same_routes_give_the_labels_of_the_whole() -> None:
    model, image = Shallow(random_network(layers=4)), picture(300, 520)
    whole = one(model, image, None, 0)
    assert len(np.unique(whole.labels)) > 1 and whole.tiles == 1
    tiled = one(model, image, (320, 384), 256)
    assert tiled.tiles == 3 and (tiled.labels == whole.labels).all()
    # where the overlap is too small for what a pixel sees, seams show
    assert 0 < (one(model, image, (64, 64), 0).labels != whole.labels).mean() < 0.2


@pytest.mark.parametrize("small_gate", [False, True])
def test_costs_are_sums_over_tiles_and_the_batch_changes_nothing(small_gate: bool) -> None:
    net = random_network(small_gate=small_gate)
    model, image = Model(net), picture(200, 230)
    tiles = cut(200, 230, (128, 128), 32)
    found = one(model, image, (128, 128), 32)
    assert found.tiles == len(tiles) == 6 and found.finite
    normalise = Normalise(std=(57.0, 57.0, 57.0))
    expected = real = executed = full = 0.0
    for index in range(len(tiles)):
        pixels = torch.from_numpy(normalise(image[tiles.window(index)])).permute(2, 0, 1)[None]
        height, width = pixels.shape[-2:]
        out = model(torch.nn.functional.pad(pixels, (0, 128 - width, 0, 128 - height)))
        expected, real = expected + float(out.expected_mflops[0]), real + float(out.real_mflops[0])
        executed += int(out.executed_macs[0])
        full += model.all_open_work(128, 128)[0]  # type: ignore[index]
    assert found.expected_mflops == pytest.approx(expected) and found.real_mflops == pytest.approx(real)
    assert (found.executed_macs, found.all_open_macs) == (executed, full)
    several = one(model, image, (128, 128), 32, batch=4)
    assert (several.labels == found.labels).all() and several.executed_macs == found.executed_macs


@pytest.mark.parametrize("small_gate", [False, True])
@pytest.mark.parametrize("height, width", [(1, 1), (33, 70), (160, 224)])
def test_all_open_is_what_the_runtime_counts(height: int, width: int, small_gate: bool) -> None:
    model = Model(random_network(small_gate=small_gate))
    found = one(model, picture(height, width), None, 0)
    assert found.all_open_macs == model.all_open_work(height, width)[0]  # type: ignore[index]


def test_pictures_come_back_in_order_and_those_of_one_size_go_together() -> None:
    model = Model(random_network())
    sizes = [(40, 50), (40, 50), (64, 32), (40, 50), (200, 60)]
    images = [(n, picture(*size)) for n, size in enumerate(sizes)]
    alone = [one(model, image, (96, 96), 32) for _, image in images]
    model.seen.clear()
    steps: list[tuple[int, int]] = []
    found = list(
        segment(
            model, images, Normalise(std=(57.0, 57.0, 57.0)), lambda h, w: cut(h, w, (96, 96), 32), batch=2,
            each=lambda done, total: steps.append((done, total)),
        )
    )  # fmt: skip
    assert [item.key for item in found] == [0, 1, 2, 3, 4] and [item.tiles for item in found] == [1, 1, 1, 1, 3]
    assert steps == [(1, 1)] * 4 + [(1, 3), (2, 3), (3, 3)]
    for item, wanted in zip(found, alone):
        assert (item.labels == wanted.labels).all() and item.executed_macs == wanted.executed_macs
        assert item.all_open_macs == wanted.all_open_macs and item.seconds > 0


def test_gates_that_are_not_finite_are_seen() -> None:
    net = random_network()
    next(iter(net.gates())).fc.bias.data.fill_(float("nan"))
    assert not one(Model(net, "reference"), picture(64, 64), None, 0).finite


@pytest.mark.parametrize(
    "tile, overlap, wanted",
    [
        ((100, 64), 32, "tile: wanted multiples of 32 pixels, got 100x64"),
        ((0, 64), 0, "tile: wanted multiples of 32 pixels, got 0x64"),
        ((96, 64), 64, "overlap: wanted a multiple of 32 pixels below the tile's 64, got 64"),
        ((96, 64), 20, "overlap: wanted a multiple of 32 pixels below the tile's 64, got 20"),
    ],
)
def test_what_no_picture_can_be_cut_by(tile: tuple[int, int], overlap: int, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        check_tile(tile, overlap)
    with pytest.raises(ValueError, match=wanted):
        cut(10, 10, tile, overlap)


def test_memory_follows_classes_and_channels() -> None:
    config = dynroute.create_model("dynamic_raw_l16", num_classes=19).config
    assert memory(config, 1000, 1000) == 1000 * 1000 * (24 + 96 + 4 * 19)
    assert memory(config, 2048, 4096) < MOST_BYTES < memory(config, 4096, 8192)
