"""The plan of a call: how many launches, and memory that is shared only by what is never in use at once."""

from __future__ import annotations

import itertools

import pytest
import torch

from dynroute.ops.cuda import DTYPES, FUSIONS, DeviceLimits, NetworkPlan, read_launches
from dynroute.ops.network import TABLE_FIELDS, table_rows

A100, RTX, H100 = (
    DeviceLimits(),
    DeviceLimits(89, 128, 99 << 10, 100 << 10),
    DeviceLimits(90, 132, 227 << 10, 228 << 10),
)
BASE = 1 << 40  # of pretended addresses


def config(layers: int = 16, channels: int = 64, classes: int = 19, activation: int = 0, stacks: int = 2) -> list[int]:
    return [layers, channels, 64, classes, activation, 0, stacks, 0]


def plan_of(fusion: str, dtype: torch.dtype = torch.float16, device: DeviceLimits = A100, image=(1, 1024, 2048), **c):
    return NetworkPlan(config(**c), [*image, *image[1:]], dtype, fusion, device)


def kernels(plan: NetworkPlan) -> list[str]:
    buffers, _ = plan.buffers()
    table = torch.arange(table_rows(plan.config[0]) * TABLE_FIELDS).view(-1, TABLE_FIELDS) * 256
    launches, _ = plan.launches([BASE + (i << 32) for i in range(len(buffers))], BASE, table)
    return [launch.kernel for launch in read_launches(launches)]


@pytest.mark.parametrize("device", [A100, RTX, H100], ids=["sm_80", "sm_89", "sm_90"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches_of_sixteen_layers(dtype: torch.dtype, device: DeviceLimits) -> None:
    """At most 77, and 80 is the limit: rows of wide scales run their cells stage by stage."""
    assert len(kernels(plan_of("staged", dtype, device))) == 77
    found = kernels(plan_of("auto", dtype, device))
    assert 60 <= len(found) <= 77
    assert len(found) == 43 + found.count("cell") + found.count("sepconv") - 2  # the stem has two
    assert found.count("aggregate") == 17 and found.count("paths") == 16  # the last row has none
    assert found[:4] == ["begin", "stem_conv", "sepconv", "sepconv"]
    assert found[-6:] == ["merge"] * 4 + ["predictor", "upsample"]


def test_launches_of_fused_cells() -> None:
    """Where all scales fit; where the widest do not, a row takes `cell` and both stages only if that is asked for."""
    for fusion in ("auto", "fused"):
        assert len(kernels(plan_of(fusion, channels=16))) == 60
    asked = kernels(plan_of("fused"))
    assert asked.count("cell") == 17 and asked.count("sepconv") - 2 in (28, 30)
    assert len(kernels(plan_of("auto", device=DeviceLimits(80, 108, 16 << 10, 164 << 10)))) == 77  # nothing fits


@pytest.mark.parametrize(("stacks", "launches"), [(1, 17 * 3 - 1 + 10), (3, 17 * 5 - 1 + 10)])
def test_cells_of_one_and_three_stages_are_never_fused(stacks: int, launches: int) -> None:
    for fusion in FUSIONS:
        assert len(kernels(plan_of(fusion, stacks=stacks))) == launches


# Which buffers are in use at once: in the space, while the stem runs, while the decoder ends.
ALWAYS = ["io", "nodes", "counts", "samples", "arrivals", *(f"partials{s}" for s in range(4))]
MAPS = [f"{kind}_{s}" for kind in ("map0", "map1", "halves") for s in range(4)]
TOGETHER = [[*ALWAYS, *MAPS], [*ALWAYS, "stem_a", "stem_b"], [*ALWAYS, "stem_b", "map0_0"]]
TOGETHER += [[*ALWAYS, "small_logits", "halves_0"]]


@pytest.mark.parametrize("classes", [1, 19, 255])
@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("image", [(1, 32, 32), (3, 64, 96), (1, 1024, 2048)], ids=str)
def test_what_is_in_use_at_once_does_not_overlap(image, channels: int, classes: int) -> None:
    buffers, workspace = plan_of("auto", image=image, channels=channels, classes=classes).buffers()
    by_name = {buffer.name: buffer for buffer in buffers}
    assert sorted(by_name) == sorted({*itertools.chain(*TOGETHER), "rows"})
    assert by_name["rows"].offset == -1
    for names in TOGETHER:
        end = 0
        for buffer in sorted((by_name[name] for name in names), key=lambda buffer: buffer.offset):
            assert buffer.offset % 256 == 0 and buffer.offset >= end, buffer
            end = buffer.offset + buffer.bytes
        assert end <= workspace


def test_memory_at_full_size() -> None:
    """The stem's two maps at half the image's size are the peak: 8 maps of scale 1/4, of which the space needs 5.6."""
    _, workspace = plan_of("auto").buffers()
    assert workspace < 8.1 * 256 * 512 * 64 * 2
    _, batch = plan_of("auto", image=(4, 1024, 2048)).buffers()
    assert 3.9 * workspace < batch < 4.1 * workspace


def test_fixed_gates_have_no_sums() -> None:
    buffers, _ = plan_of("auto", activation=3).buffers()
    assert all(buffer.bytes == 0 for buffer in buffers if buffer.name.startswith("partials"))


def test_errors_name_the_argument() -> None:
    for wrong, message in (
        ({"image": (1, 100, 128)}, "images: wanted height and width in multiples of 32"),
        ({"image": (0, 128, 128)}, "wanted 1 to 65535 samples"),
        ({"device": DeviceLimits(75, 40, 64 << 10, 64 << 10)}, r"wanted compute capability 8\.0 or higher, got 7\.5"),
    ):
        with pytest.raises(RuntimeError, match=message):
            plan_of("auto", **wrong).buffers()
