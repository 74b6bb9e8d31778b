# ruff: noqa: RUF001  (signs of mathematics)
"""The training operators, both directions."""

from __future__ import annotations

from benchmarks.tiles import sizes
from benchmarks.tiles.panels import Area, Cells, Held, Panel, picture
from benchmarks.tiles.sizes import FLOAT, HALF, MAP, C, H, N, W, ceil_div, constant

SETTING = f"C = {C}, maps of {N} × {H} × {W}. CUDA and Triton in float16, the CPU in float32 with AVX-512."
PROGRAMS = sizes.number("dynroute/ops/triton/train/backward.py", "PROGRAMS")


def chain_train() -> str:
    """A stage of sepconv_train or transform_train, both directions."""

    band, tile = (
        sizes.train_band_rows(N, H),
        sizes.tile_columns(constant("cpu/kernels/train_forward.cpp", "kTrainPixels")),
    )
    tasks = N * ceil_div(H, band)
    cpu = Panel(
        "CPU", f"forward, a task: a band of {band} rows ({tasks} tasks, by the shape alone), in tiles of {tile} pixels"
    )
    cpu.map(
        MAP,
        [Area(0, 24, W, band), Area(0, 24, tile, 1, "L2")],
        Cells(18, 3, [Area(1, 1, 16, 1, "L2")], "three rows under the depthwise, four kept"),
    )
    cpu.product(tile, C, C, C, (6, C), "L2,L1,registers", "Raw is summed up while the tile is in L1.")
    cpu.holds(
        [
            Held("L2", f"panel: the depthwise of {tile} pixels", tile * sizes.panel_row(C)),
            Held("L2", "rows of the input behind BatchNorm, four", 4 * W * C * FLOAT),
            Held("memory", f"a task's pivots and two sums, {tasks} × 3 × {C}", tasks * 3 * C * FLOAT),
        ]
    )
    parts = min(max((1 << 18) // (C * C), 4), 16)
    cpu.head("back", f"train_product: {parts} parts of all rows; train_depthwise: bands of {band} rows")
    cpu.holds(
        [
            Held("L2", f"gradient and depthwise of {tile} pixels, two panels", 2 * tile * sizes.panel_row(C)),
            Held("memory", f"W's gradient, {parts} parts, added in order", parts * C * C * FLOAT),
            Held("memory", f"taps' gradients, {tasks} × 9 × {C}", tasks * 9 * C * FLOAT),
        ]
    )

    side, pixels = sizes.SIDE, sizes.SIDE**2
    cuda = Panel("CUDA", f"forward, an item: {side} × {side} output pixels, all output channels; 256 threads")
    cuda.map(
        MAP,
        [Area(40, 24, side, side)],
        Cells(
            side + 2,
            side + 2,
            [Area(1, 1, side, side, "L1")],
            f"{side + 2} × {side + 2}, made on the way to shared memory",
        ),
    )
    cuda.product(
        pixels, C, C, 32, (16, 32), "L1,L1,registers", "8 warps of 16 × 32; sums by channel straight from them."
    )
    cuda.holds(
        [
            Held("L1", f"A, {pixels} × ({C} + 8)", sizes.a_bytes(pixels, C)),
            Held("L1", "halo and taps, then the ring of weights", max(sizes.halo_bytes(), sizes.ring_bytes(64))),
            Held("L1", "sums of rows of warps, pivots", sizes.TRAIN_TOTALS),
        ]
    )
    run = constant("cuda/kernels/train_shapes.h", "kTapsRun")
    cuda.head(
        "back",
        "train_product: items as forward; train_outer: 64 × 64 weights over a part of the tiles; "
        f"train_depthwise: {run} tiles of {side} × {side}",
    )
    cuda.holds(
        [
            Held(
                "L1",
                "product: A, the gradient of raw; room; sums",
                sizes.a_bytes(pixels, C) + sizes.ring_bytes(64) + sizes.TRAIN_TOTALS,
            ),
            Held("L1", "outer: both factors, and a halo with taps", 2 * pixels * (C * HALF + 16) + sizes.halo_bytes()),
            Held(
                "L1",
                f"depthwise: gradient, {side + 2} × {side + 2} × 64, then sums of 8 warps; taps",
                sizes.train_depthwise_bytes(),
            ),
        ]
    )
    own, outer, taps = (sizes.cut(family) for family in ("train_forward", "train_outer", "train_depthwise"))
    triton = Panel(
        "Triton",
        f"forward, a program: {own.block_m} pixels × {own.block_n} output channels; {own.num_warps} warps",
    )
    triton.map(
        MAP,
        [Area(0, 24, own.block_m, 1)],
        Cells(18, 3, [Area(1, 1, 16, 1)], "nine loads for a pixel, each with BatchNorm and ReLU"),
    )
    triton.product(
        own.block_m,
        C,
        own.block_n,
        own.block_k,
        (own.block_m, own.block_n),
        "registers,memory,registers",
        "A of a step is made in the loop; tl.sum over the values as they are stored.",
    )
    tiles = N * ceil_div(H * W, own.block_m)
    triton.holds(
        [
            Held("registers", f"{own.block_m} × {own.block_k} of A", own.block_m * own.block_k * FLOAT),
            Held("registers", f"{own.block_m} × {own.block_n} sums", own.block_m * own.block_n * FLOAT),
            Held("memory", f"means and squares, {tiles} tiles × 2 × {C}", tiles * 2 * C * FLOAT),
        ]
    )
    blocks = ceil_div(C, outer.block_n) * ceil_div(C, outer.block_k)
    count = min(N * ceil_div(H * W, outer.block_m), ceil_div(PROGRAMS, blocks))
    triton.head(
        "back",
        f"product as forward; outer: {outer.block_n} × {outer.block_k} weights over a part of the tiles; "
        f"depthwise: {taps.block_m} pixels × {taps.block_n} channels",
    )
    of_taps = N * ceil_div(H * W, taps.block_m) * 9 * C
    triton.holds(
        [
            Held("registers", "outer: sums of weights", outer.block_n * outer.block_k * FLOAT),
            Held("memory", f"W's gradient, {count} parts, added in order", count * C * C * FLOAT),
            Held("memory", "taps' gradients of each tile, added in order", of_taps * FLOAT),
        ]
    )
    return picture("sepconv_train, transform_train: a chain of stages", SETTING, [cpu, cuda, triton])


def node_train() -> str:
    """A node with both paths."""

    tile = constant("cpu/kernels/train_node.cpp", "kPathPixels")
    cpu = Panel(
        "CPU",
        f"a task: a band of an even number of rows, in tiles of {tile} pixels; one pass: H is made once, for all three",
    )
    band = 2 * ceil_div(sizes.train_band_rows(N, H), 2)
    cpu.map(
        MAP,
        [Area(0, 24, W, band), Area(0, 24, tile, 1, "L2")],
        Cells(
            16, 2, [Area(x, 0, 1, 1, "L2") for x in range(0, 16, 2)], "down takes every second pixel of the tile in L2"
        ),
    )
    cpu.product(
        tile,
        C,
        C // 2,
        C,
        (8, C // 2),
        "L2,L1,registers",
        "up's product of the tile; down's has a quarter of the pixels, 2C outputs.",
    )
    cpu.holds(
        [
            Held("L2", f"H of {tile} pixels", tile * sizes.panel_row(C)),
            Held("L2", f"down's pixels, at most {tile // 2}", tile // 2 * sizes.panel_row(C)),
            Held("memory", "read x, y; written keep, both raws: 1 + 1 + 1 + 1/2 + 1/2 maps", None),
        ]
    )
    cpu.head(
        "back", "one pass again: H made again, both products and weights' gradients, the ReLU's mask, sums, alphas"
    )
    cpu.holds(
        [
            Held(
                "L2",
                "H, down's pixels, down's gradient, a path's gradient",
                tile * sizes.panel_row(C) * 2 + tile * sizes.panel_row(C // 2),
            ),
        ]
    )

    pixels = sizes.SIDE**2
    cuda = Panel(
        "CUDA",
        "train_forward: items of 8 × 8 pixels of up and of down in one launch; train_apply: keep, up, down in one more",
    )
    cuda.map(
        MAP,
        [Area(40, 24, 8, 8)],
        Cells(8, 8, [Area(0, 0, 8, 8, "L1")], "H of a tile, made on the way to shared memory: by up, by down, by keep"),
    )
    cuda.product(
        pixels,
        C,
        64,
        32,
        (16, 32),
        "L1,L1,registers",
        f"up: of 64 columns {C // 2} are there. down: 128 columns, A of every second pixel.",
    )
    cuda.holds(
        [
            Held("L1", f"A: H of {pixels} pixels", sizes.a_bytes(pixels, C)),
            Held("L1", "ring of weights (of down)", sizes.ring_bytes(128)),
            Held("memory", "x, y read by up, by keep, and a quarter by down: 2.25 times", None),
        ]
    )
    run = constant("cuda/kernels/train_shapes.h", "kRunPixels")
    cuda.head(
        "back",
        f"train_sums, train_product, train_outer for both paths at once; train_hidden: runs of {run} pixels × 64 "
        "channels",
    )
    cuda.holds(
        [
            Held("memory", "train_hidden: x, y, g of keep, of up's and down's H; out g of H", None),
            Held("registers", "two sums and two dot products of each thread's 8 channels", None),
        ]
    )
    own, apart = sizes.cut("train_forward"), sizes.cut("train_map")
    triton = Panel(
        "Triton", "forward_kernel for up and for down, apply_kernel for each, keep_kernel: launches of their own"
    )
    triton.map(
        MAP,
        [Area(0, 24, own.block_m, 1)],
        Cells(16, 2, [Area(x, 0, 1, 1) for x in range(0, 16, 2)], "down reads every second pixel of x and y"),
    )
    triton.product(
        own.block_m,
        C,
        own.block_n,
        own.block_k,
        (own.block_m, own.block_n),
        "registers,memory,registers",
        "A is H, made as x and y are read.",
    )
    triton.holds(
        [
            Held("registers", f"{own.block_m} × {own.block_n} sums", own.block_m * own.block_n * FLOAT),
            Held("memory", "x, y read by up, by keep, and a quarter by down: 2.25 times", None),
        ]
    )
    triton.head(
        "back", f"per path sums, outer, product; hidden_kernel: {apart.block_m} pixels × {apart.block_n} channels"
    )
    triton.holds(
        [
            Held("memory", "hidden_kernel: x, y, g of keep, of up's and down's H; out g of H", None),
            Held("memory", "two sums of each channel, two dot products: of each tile", None),
        ]
    )
    return picture("node_train: a cell and what its paths make of it", SETTING, [cpu, cuda, triton])


def gate_train() -> str:
    """Full size, C -> C/2."""
    m = C // 2
    band = sizes.train_band_rows(N, H)
    tasks, tile = N * ceil_div(H, band), sizes.tile_columns(constant("cpu/kernels/train_forward.cpp", "kTrainPixels"))
    chunk = constant("cpu/kernels/train_gate.cpp", "kGateChunk")
    cpu = Panel(
        "CPU",
        f"a task: a band of {band} rows ({tasks} tasks); product in tiles of {tile} pixels, pooling in chunks of "
        f"{chunk}",
    )
    cpu.map(MAP, [Area(0, 24, W, band), Area(0, 24, chunk, 1, "L1")])
    cpu.product(
        tile, C, m, C, (8, m), "L2,L1,registers", "The product is train_forward's, as a stage without a depthwise."
    )
    cpu.holds(
        [
            Held("L2", f"panel: x of {tile} pixels", tile * sizes.panel_row(C)),
            Held("registers", "three sums of a vector of channels over a chunk", 3 * 16 * FLOAT),
            Held("memory", f"{tasks} tasks × 3 × {m}, added in order, in double", tasks * 3 * m * FLOAT),
        ]
    )
    grad = sizes.tile_columns(constant("cpu/kernels/train_gate.cpp", "kGatePixels"))
    cpu.head("back", f"gate_product, one pass: tiles of {grad} pixels, both gradients")
    cpu.holds(
        [
            Held("L2", f"g of raw, {grad} pixels", grad * sizes.panel_row(m)),
            Held("L2", f"x, {grad} pixels", grad * sizes.panel_row(C)),
        ]
    )
    run = constant("cuda/kernels/train_shapes.h", "kRunPixels")
    runs = ceil_div(H * W, run)
    cuda = Panel(
        "CUDA", f"train_forward as a chain's; train_gate_pool: runs of {run} pixels × 64 channels, 256 threads"
    )
    cuda.map(MAP, [Area(0, 24, W, run // W)])
    cuda.product(64, C, 64, 32, (16, 32), "L1,L1,registers", f"8 warps of 16 × 32; of 64 columns {m} are there.")
    cuda.holds(
        [
            Held("L1", f"A: x of 64 pixels, 64 × ({C} + 8)", sizes.a_bytes(64, C)),
            Held("memory", f"{runs} runs × 3 × {m} of a sample", runs * 3 * m * FLOAT),
            Held("registers", "train_gate_end: a block to a sample, in double", None),
        ]
    )
    cuda.head(
        "back",
        "train_gate_begin: 32 channels to a block, a warp to every 8th sample; train_product and train_outer as a "
        "chain's",
    )
    cuda.holds([Held("memory", f"g of each sample and channel, {N} × {m}", N * m * FLOAT)])
    own, apart = sizes.cut("train_forward"), sizes.cut("train_map")
    tiles = ceil_div(H * W, apart.block_m)
    triton = Panel(
        "Triton",
        f"forward_kernel as a chain's; pool_kernel: {apart.block_m} pixels × {apart.block_n} channels, "
        f"{apart.num_warps} warps",
    )
    triton.map(MAP, [Area(0, 24, apart.block_m, 1)])
    triton.product(
        own.block_m,
        C,
        own.block_n,
        own.block_k,
        (own.block_m, own.block_n),
        "registers,memory,registers",
        f"What is beyond {m} channels is masked.",
    )
    triton.holds(
        [
            Held("registers", f"{own.block_m} × {own.block_n} sums", own.block_m * own.block_n * FLOAT),
            Held("memory", f"{tiles} tiles × 3 × {m} of a sample", tiles * 3 * m * FLOAT),
            Held("registers", "end_kernel: a program to a sample, in double", None),
        ]
    )
    triton.head(
        "back", "begin_kernel: a program to a sample; product and outer as a chain's, told that g is a sample's"
    )
    triton.holds([Held("memory", f"g of each sample and channel, {N} × {m}", N * m * FLOAT)])
    return picture(
        "gate_train: the gate with BatchNorm's statistics", f"C → C/2, full size. {SETTING}", [cpu, cuda, triton]
    )
