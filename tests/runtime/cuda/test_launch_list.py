"""A call's launch list: how many launches, and memory that is shared only by what is never in use at once."""

from __future__ import annotations

import itertools

import pytest
import torch

from dynroute.native.contract import ConfigNumbers, WeightField, table_rows
from dynroute.runtime.cuda.launch_list import DTYPES, FUSIONS, DeviceLimits, Launch, LaunchList, read_launches
from tests.support.cuda.devices import A100, ADA, H100
from tests.support.cuda.structs import (
    SCALES,
    AggregateRouteParams,
    CellParams,
    InitCallParams,
    StagePathsParams,
    StemPlanesParams,
)

BASE = 1 << 40  # of pretended addresses


def config(
    layers: int = 16, channels: int = 64, classes: int = 19, activation: int = 0, stacks: int = 2, planes: int = 3
) -> ConfigNumbers:
    return ConfigNumbers(
        layers, channels, 64, classes, activation, small_gate=0, cell_stacks=stacks, bf16_storage=0, in_channels=planes
    )


def list_of(fusion: str, dtype: torch.dtype = torch.float16, device: DeviceLimits = A100, image=(1, 1024, 2048), **c):
    return LaunchList(config(**c), [*image, *image[1:]], dtype, fusion, device)


def launches(launch_list: LaunchList) -> list[Launch]:
    buffers, _ = launch_list.buffers()
    fields = int(WeightField.TABLE_FIELDS)
    table = torch.arange(table_rows(launch_list.config.layers) * fields).view(-1, fields) * 256
    return list(read_launches(launch_list.launches([BASE + (i << 32) for i in range(len(buffers))], BASE, table)))


def kernels(launch_list: LaunchList) -> list[str]:
    return [launch.kernel for launch in launches(launch_list)]


def stages_of_stem(found: list[str]) -> int:
    """Its launches behind the first convolution: in 16 bits one, where a multiprocessor has the memory."""
    return found.index("aggregate_route") - 2


def rhythm(found: list[str]) -> list[int]:
    """How many `cell`, `sepconv`, `stage_paths` are between stem and decoder; all else is `aggregate_route`."""
    stem = stages_of_stem(found)
    assert found[: 2 + stem] == ["init_call", "stem_conv", *(["stem_stages"] if stem == 1 else ["sepconv"] * 2)]
    assert found[-6:] == ["merge"] * 4 + ["predictor", "upsample"]
    space = found[2 + stem : -6]
    assert space.count("aggregate_route") == 17 and set(space) <= {"aggregate_route", "cell", "sepconv", "stage_paths"}
    return [space.count(kernel) for kernel in ("cell", "sepconv", "stage_paths")]


DEVICES = pytest.mark.parametrize("device", [A100, ADA, H100], ids=["sm_80", "sm_89", "sm_90"])


@DEVICES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_launches_of_sixteen_layers(dtype: torch.dtype, device: DeviceLimits) -> None:
    """80 is the limit. The last row has no paths, but a last stage where scales are staged."""
    for fusion in FUSIONS:
        assert len(kernels(list_of(fusion, dtype, device))) <= 77
    found = kernels(list_of("staged", dtype, device))
    assert len(found) == 61 and rhythm(found) == [0, 17, 17]
    found = kernels(list_of("fused", dtype, device, channels=8))  # all scales fit
    stem = 1 if device is H100 and dtype != torch.float32 else 2
    assert stages_of_stem(found) == stem
    assert len(found) == 58 + stem and rhythm(found) == [17, 0, 16]


@DEVICES
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scales_differ_in_fusion(dtype: torch.dtype, device: DeviceLimits) -> None:
    """64 to 512 channels: the first scale is fused where that pays, so that rows but the first have both."""
    found = kernels(list_of("auto", dtype, device))
    if dtype == torch.float32 and device is not H100:  # too little room for tiles in float
        assert rhythm(found) == [0, 17, 17]
    else:
        wide = device is H100 and dtype != torch.float32  # two scales, so that row 1 has no others
        stem = stages_of_stem(found)
        assert len(found) == 75 + stem - wide and rhythm(found) == [17, 16 - wide, 17]
        assert found[2 + stem :][:3] == ["aggregate_route", "cell", "stage_paths"]
        mixed = ["aggregate_route", "cell", "sepconv", "stage_paths"]
        assert found[5 + stem + 3 * wide :][:4] == found[-10:-6] == mixed
    # 128 channels, if that is asked for and fits: then row 1 is all fused
    wide = dtype != torch.float32 and device is not ADA
    assert rhythm(kernels(list_of("fused", dtype, device))) == [17, 15 if wide else 16, 17]


def test_128_channels_are_fused_where_a_sample_fills_the_device() -> None:
    found = [rhythm(kernels(list_of("auto", torch.float16, H100, image=(1, h, 2 * h)))) for h in (512, 1024)]
    assert found == [[17, 16, 17], [17, 15, 17]]
    assert rhythm(kernels(list_of("auto", torch.float16, ADA, image=(1, 1024, 2048)))) == [17, 16, 17]


def test_what_is_fused() -> None:
    """By the parameters of each row's launches."""
    for channels, fused in ((8, 4), (16, 3), (24, 2), (32, 2), (64, 1), (72, 0)):  # up to 64 channels
        launch_list = list_of("auto", channels=channels)
        last = {launch.kernel: launch.params for launch in launches(launch_list)}
        cells = [s for s in range(SCALES) if fused and CellParams.from_buffer_copy(last["cell"]).depthwise[s][0]]
        stages = StagePathsParams.from_buffer_copy(last["stage_paths"]).cells.stage
        assert cells == list(range(fused))
        assert [s for s in range(SCALES) if stages[s].depthwise] == ([] if fused == 4 else list(range(fused, SCALES)))


def test_nothing_is_fused_where_nothing_fits() -> None:
    assert rhythm(kernels(list_of("fused", channels=136, device=H100))) == [0, 17, 17]


@pytest.mark.parametrize(("stacks", "launches"), [(1, 10 + 17 * 2), (3, 10 + 17 * 4)])
def test_cells_of_one_and_three_stages_are_never_fused(stacks: int, launches: int) -> None:
    for fusion in FUSIONS:
        assert len(kernels(list_of(fusion, stacks=stacks))) == launches


def test_counters_are_apart() -> None:
    """Of each row, and cleared by `init_call`: aggregate_route's of nodes and of the row, stage_paths' of
    nodes and its ticket."""
    n, nodes = 3, 3 * SCALES
    launch_list = list_of("auto", image=(n, 64, 64))
    found = launches(launch_list)
    first = InitCallParams.from_buffer_copy(found[0].params)
    ranges = []
    for launch in found:
        if launch.kernel == "aggregate_route":
            p = AggregateRouteParams.from_buffer_copy(launch.params)
            ranges += [(p.node_arrivals, nodes), (p.row_arrivals, 1)]
        if launch.kernel == "stage_paths":
            q = StagePathsParams.from_buffer_copy(launch.params)
            ranges += [(q.finished, nodes), (q.ticket, 1)]
    end = first.counters
    for start, count in sorted(ranges):
        assert start >= end
        end = start + 4 * count
    assert end <= first.counters + 4 * first.counter_count
    buffers, _ = launch_list.buffers()
    assert next(buffer.bytes for buffer in buffers if buffer.name == "arrivals") == 4 * first.counter_count


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        (80 << 10, r"sepconv at 512 channels needs 91136 bytes of shared memory per block, the device has 81920"),
        (15 << 10, r"stem_conv at 64 channels needs \d+ bytes of shared memory per block, the device has 15360"),
    ],
)
def test_a_kernel_that_does_not_fit_is_named(shared: int, message: str) -> None:
    with pytest.raises(RuntimeError, match="cuda_launches: " + message):
        kernels(list_of("auto", device=DeviceLimits(80, 108, shared, 164 << 10)))


# Which buffers are in use at once: in the space, while the stem runs (in two passes or one), while the decoder ends.
ALWAYS = ["io", "nodes", "counts", "samples", "arrivals", *(f"partials{s}" for s in range(4))]
MAPS = [f"{kind}_{s}" for kind in ("map0", "map1", "halves") for s in range(4)]
TOGETHER = [[*ALWAYS, *MAPS], [*ALWAYS, "small_logits", "halves_0"]]
IN_STEM = {2: [[*ALWAYS, "stem_a", "stem_b"], [*ALWAYS, "stem_b", "map0_0"]], 1: [[*ALWAYS, "stem_a", "map0_0"]]}


@pytest.mark.parametrize("classes", [1, 19, 255])
@pytest.mark.parametrize("channels", [8, 64])
@pytest.mark.parametrize("image", [(1, 32, 32), (3, 64, 96), (1, 1024, 2048)], ids=str)
@pytest.mark.parametrize("device", [A100, H100], ids=["sm_80", "sm_90"])
def test_what_is_in_use_at_once_does_not_overlap(image, channels: int, classes: int, device: DeviceLimits) -> None:
    launch_list = list_of("auto", image=image, channels=channels, classes=classes, device=device)
    buffers, workspace = launch_list.buffers()
    by_name = {buffer.name: buffer for buffer in buffers if buffer.bytes or buffer.name != "stem_b"}
    together = TOGETHER + IN_STEM[stages_of_stem(kernels(launch_list))]
    assert sorted(by_name) == sorted({*itertools.chain(*together)})
    for names in together:
        end = 0
        for buffer in sorted((by_name[name] for name in names), key=lambda buffer: buffer.offset):
            assert buffer.offset % 256 == 0 and buffer.offset >= end, buffer
            end = buffer.offset + buffer.bytes
        assert end <= workspace


def test_memory_at_full_size() -> None:
    """In maps of scale 1/4: 5.6, which the space needs; 8, the stem's two maps at half the image's size, where its
    stages are two passes."""
    assert list_of("auto", device=H100).buffers()[1] < 5.7 * 256 * 512 * 64 * 2
    _, workspace = list_of("auto").buffers()
    assert workspace < 8.1 * 256 * 512 * 64 * 2
    _, batch = list_of("auto", image=(4, 1024, 2048)).buffers()
    assert 3.9 * workspace < batch < 4.1 * workspace


def test_fixed_gates_have_no_sums() -> None:
    buffers, _ = list_of("auto", activation=3).buffers()
    assert all(buffer.bytes == 0 for buffer in buffers if buffer.name.startswith("partials"))


@pytest.mark.parametrize("planes", [1, 2, 4])
def test_images_of_other_than_three_planes_have_a_kernel_of_their_own(planes: int) -> None:
    found, usual = launches(list_of("auto", planes=planes)), launches(list_of("auto"))
    assert [launch.kernel for launch in found] == [
        "stem_planes" if launch.kernel == "stem_conv" else launch.kernel for launch in usual
    ]
    params = StemPlanesParams.from_buffer_copy(found[1].params)
    assert (params.planes, params.of_tap.by, params.weight.k, params.weight.n) == (planes, planes, 9 * planes, 64)


@pytest.mark.parametrize("classes", [1, 19])
@pytest.mark.parametrize("channels, planes", [(8, 3), (64, 3), (136, 3), (8, 40)])
def test_sizes_stop_where_offsets_would_overflow(channels: int, planes: int, classes: int) -> None:
    """The largest map of a sample that a list is made for has less than 2^31 values, and the next size more."""

    def values(side: int) -> int:
        maps = planes * side**2, (side // 2 - 1) ** 2 * 64, (side // 4) ** 2 * channels, classes * side**2
        return max(maps)

    largest = max(side for side in range(32, 1 << 15, 32) if values(side) < 1 << 31)
    sizes = {"channels": channels, "classes": classes, "planes": planes}
    list_of("auto", image=(1, largest, largest), **sizes).buffers()
    with pytest.raises(RuntimeError, match=r"image: wanted at most 2147483647 values in .* of a sample, got \d+ for"):
        list_of("auto", image=(1, largest + 32, largest + 32), **sizes).buffers()
    list_of("auto", image=(8191, 2048, 2048)).buffers()
    with pytest.raises(RuntimeError, match="image: wanted at most 8191 samples of this size, got 8192"):
        list_of("auto", image=(8192, 2048, 2048)).buffers()


def test_errors_name_the_argument() -> None:
    for wrong, message in (
        ({"image": (1, 100, 128)}, "images: wanted height and width in multiples of 32"),
        ({"image": (0, 128, 128)}, "wanted 1 to 65535 samples"),
        ({"device": DeviceLimits(75, 40, 64 << 10, 64 << 10)}, r"wanted compute capability 8\.0 or higher, got 7\.5"),
    ):
        with pytest.raises(RuntimeError, match=message):
            list_of("auto", **wrong).buffers()
