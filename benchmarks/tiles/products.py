# ruff: noqa: RUF001  (signs of mathematics)
"""`sepconv`, `transform` and `gate`."""

from __future__ import annotations

from benchmarks.tiles import sizes
from benchmarks.tiles.panels import Area, Cells, Held, Panel, picture
from benchmarks.tiles.sizes import FLOAT, HALF, MAP, SETTING, C, H, W, ceil_div, constant


def sepconv() -> str:
    """Two stages, 64 -> 64 -> 64, stride 1."""
    strip, step = constant("cpu/planner/planner.cpp", "kStripColumns"), sizes.step_rows()
    ring, band = step - 1 + 3, 16
    cpu = Panel("CPU", "a task: a band of rows of the last stage's output; both stages in one pass")
    cpu.map(
        MAP,
        [Area(0, band, W, band)],
        Cells(strip + 2, 3, [Area(1, 1, strip, 1, "L1")], f"a tile: {strip} pixels of a row, below the two before it"),
    )
    cpu.product(
        strip, C, C, C, (6, C), "L1,L1,registers", "The product of a tile: 6 × 64 sums in registers, over all of k."
    )
    cpu.holds(
        [
            Held("memory", "x, a few rows ahead; out, once", None),
            Held(
                "L2",
                f"stage 1's newest {ring} rows, a ring: {step} rows of stage 2 are made at a time",
                ring * W * C * FLOAT,
            ),
            Held("L1", f"three rows of {strip + 2} pixels under the depthwise", 3 * (strip + 2) * C * FLOAT),
            Held("L1", f"panel: the depthwise of {strip} pixels", strip * sizes.panel_row(C)),
            Held("L1", "pointwise weights, packed", C * C * FLOAT),
            Held("registers", "6 × 64 sums", 6 * 64 * FLOAT),
        ]
    )
    cpu.say(
        f"Planned for {sizes.L1 >> 10} KB of L1 and {sizes.L2 >> 20} MB of L2; the band's height also follows "
        "threads and samples.",
        11,
    )

    side, pixels = sizes.SIDE, sizes.SIDE**2
    cuda = Panel(
        "CUDA",
        f"an item: {side} × {side} output pixels of a sample, all output channels; 256 threads; a stage is a launch",
    )
    cuda.map(
        MAP,
        [Area(40, 24, side, side)],
        Cells(
            side + 2,
            side + 2,
            [Area(1, 1, side, side, "L1")],
            f"{side + 2} × {side + 2} read, {side} × {side} filtered: 1.56 times the map",
        ),
    )
    cuda.product(
        pixels, C, C, 32, (16, 32), "L1,L1,registers", "mma.m16n8k16 by 8 warps of 16 × 32; k in chunks of 32."
    )
    cuda.holds(
        [
            Held("memory", "x 1.56 times, mostly from L2; out once; the map between the stages, whole", None),
            Held(
                "L1",
                f"halo, {side + 2} × {side + 2} × {sizes.CHUNK_CHANNELS}, with its taps (cp.async)",
                sizes.halo_bytes(),
            ),
            Held("L1", f"A: the depthwise, {pixels} × ({C} + 8)", sizes.a_bytes(pixels, C)),
            Held("L1", "weights; these stay, wider ones pass through a ring", C * C * HALF),
            Held(
                "registers",
                "2 × 2 pixels of 4 channels of the depthwise, then 16 sums, of each thread",
                pixels * C * FLOAT,
            ),
        ]
    )

    own = sizes.cut("sepconv")
    triton = Panel(
        "Triton",
        f"a program: {own.block_m} pixels in a row × {own.block_n} output channels; {own.num_warps} warps; a "
        "stage is a launch",
    )
    triton.map(
        MAP,
        [Area(32, 24, own.block_m, 1)],
        Cells(
            own.block_m + 2,
            3,
            [Area(1, 1, own.block_m, 1)],
            f"{own.block_m + 2} × 3 read: nine loads for a pixel, eight of them a neighbour's too",
        ),
    )
    triton.product(
        own.block_m,
        C,
        own.block_n,
        own.block_k,
        (own.block_m, own.block_n),
        "registers,memory,registers",
        f"The depthwise of {own.block_k} channels is made on the way into each step of tl.dot.",
    )
    triton.holds(
        [
            Held("memory", "x, weights and out; the map between the stages, whole", None),
            Held("L1", "what tl.dot turns (static, sm_90)", sizes.triton_shared("sepconv_kernel", own)),
            Held("registers", f"{own.block_m} × {own.block_k} filtered", own.block_m * own.block_k * FLOAT),
            Held("registers", f"{own.block_m} × {own.block_n} sums", own.block_m * own.block_n * FLOAT),
        ]
    )
    return picture("sepconv: depthwise 3×3 → 1×1, two stages", SETTING, [cpu, cuda, triton])


def transform() -> str:
    """A path down: 64 -> 128, stride 2."""
    out_c, h, w = 2 * C, H // 2, W // 2
    task = max(ceil_div(h * w, 8), constant("cpu/kernels/tasks_of_jobs.h", "kMinTaskPixels"))
    tile = 60  # transform.cpp: where k is at most 128, without tiles
    cpu = Panel("CPU", f"a task: a run of {task} output pixels (an eighth of the map), in tiles of {tile}")
    cpu.map(
        (w, h),
        [Area(0, 8, w, task // w)],
        Cells(
            16,
            2,
            [Area(x, 0, 1, 1, "L1") for x in range(0, 16, 2)],
            "stride 2: of every second row every second pixel is read",
        ),
        "output",
    )
    cpu.product(
        tile,
        C,
        out_c,
        C,
        (6, 64),
        "L1,L2,registers",
        "6 × 64 sums in registers; the panels of 64 outputs one after the other.",
    )
    cpu.holds(
        [
            Held("memory", "x: a quarter of its pixels; out once", None),
            Held("L1", f"panel: ReLU(x) of {tile} pixels", tile * sizes.panel_row(C)),
            Held("L2", "weights, packed in panels of 16 outputs", C * out_c * FLOAT),
            Held("registers", "6 × 64 sums", 6 * 64 * FLOAT),
        ]
    )
    cuda = Panel("CUDA", "an item: 64 output pixels × 64 output channels (or several blocks of 64); 128 threads")
    cuda.map(
        (w, h),
        [Area(0, 8, w, 1)],
        Cells(
            16,
            2,
            [Area(x, 0, 1, 1, "L1") for x in range(0, 16, 2)],
            "16 bytes at a time by cp.async; each thread makes ReLU of what it copied",
        ),
        "output",
    )
    cuda.product(
        64, C, out_c, 32, (32, 32), "L1,L1,registers", "4 warps of 32 × 32; a ring of chunks of 32 × 64 weights."
    )
    cuda.holds(
        [
            Held("memory", "x: a quarter of its pixels, once for each item of a tile; out once", None),
            Held("L1", f"A: ReLU(x), 64 × ({C} + 8)", sizes.a_bytes(64, C)),
            Held("L1", "ring of three chunks of weights", sizes.ring_bytes(64)),
            Held("registers", "32 sums of each thread", 64 * 64 * FLOAT),
        ]
    )
    own = sizes.cut("transform")
    triton = Panel(
        "Triton", f"a program: {own.block_m} output pixels × {own.block_n} output channels; {own.num_warps} warps"
    )
    triton.map(
        (w, h),
        [Area(0, 8, w, own.block_m // w)],
        Cells(
            16,
            2,
            [Area(x, 0, 1, 1, "registers") for x in range(0, 16, 2)],
            "read again for the other block of output channels",
        ),
        "output",
    )
    triton.product(
        own.block_m,
        C,
        out_c,
        own.block_k,
        (own.block_m, own.block_n),
        "L1,L1,registers",
        f"tl.dot in steps of {own.block_k}; loads of {own.num_stages} steps on their way.",
    )
    triton.holds(
        [
            Held("memory", f"x: a quarter of its pixels, {out_c // own.block_n} times; out once", None),
            Held("L1", "A and W of a step (static, sm_90)", sizes.triton_shared("transform_kernel", own)),
            Held("registers", f"{own.block_m} × {own.block_n} sums", own.block_m * own.block_n * FLOAT),
        ]
    )
    return picture(
        "transform: ReLU → 1×1 → scale, shift → ReLU",
        f"The path down, stride 2, C → 2C. {SETTING}",
        [cpu, cuda, triton],
    )


def gate() -> str:
    """Full size, three gates."""
    m = C // 2
    rows = max(ceil_div(H, 8), ceil_div(constant("cpu/kernels/tasks_of_jobs.h", "kMinTaskPixels"), W))
    cpu = Panel("CPU", f"a task: a band of {rows} rows (an eighth of the map), in tiles of 64 pixels of a row")
    cpu.map(MAP, [Area(0, 2 * rows, W, rows), Area(0, 2 * rows, 64, 1, "L1")])
    cpu.product(
        64,
        C,
        m,
        C,
        (8, m),
        "memory,L1,registers",
        "x is read where it lies. A block's ReLU'd sums are added up in its columns.",
    )
    cpu.flow(
        [
            [("a tile's 32 sums, then a band's", "L1")],
            [(f"{H // rows} bands × 32, added in order, in double", "memory")],
            [("mean → 1×1 → tanh → ReLU", "registers")],
        ]
    )
    cpu.holds(
        [
            Held("memory", "x once; no map is written", None),
            Held("L1", "weights, packed", C * m * FLOAT),
            Held("memory", "partial sums of a sample", H // rows * m * FLOAT),
        ]
    )

    side = 8
    tasks = ceil_div(H, side) * ceil_div(W, side)
    cuda = Panel("CUDA", f"a task: a tile of {side} × {side} pixels (2 × 2 blocks of 4 × 4); 128 threads")
    cuda.map(
        MAP,
        [Area(40, 24, side, side)],
        Cells(side, side, [Area(0, 0, side, side, "L1")], "pulled as 2 × 2 quads of 2 × 2 pixels"),
    )
    cuda.product(64, C, m, 32, (16, m), "L1,L1,registers", f"4 warps of 16 × {m}: the tile fits pixels and channels")
    cuda.flow(
        [
            [("columns of the sums: shuffles, 4 + 2 + 1", "registers")],
            [(f"{tasks} tasks × {m}", "memory")],
            [("the last block to finish the sample: mean → 1×1 → tanh → ReLU", "registers")],
        ]
    )
    cuda.holds(
        [
            Held("memory", "x once; no map is written", None),
            Held("L1", f"A: {side * side} × ({C} + 8)", sizes.a_bytes(64, C)),
            Held(
                "L1",
                "ring of weights, three to six chunks",
                sizes.gate_ring_bytes(),
            ),
            Held("memory", "partial sums of a sample", tasks * m * FLOAT),
        ]
    )

    own = sizes.cut("gate")
    tiles = ceil_div(H * W, own.block_m)
    triton = Panel(
        "Triton",
        f"a program: {own.block_m} pixels × {own.block_n} channels; {own.num_warps} warps; the end is a second launch",
    )
    triton.map(MAP, [Area(0, 24, own.block_m, 1)])
    triton.product(
        own.block_m,
        C,
        own.block_n,
        own.block_k,
        (own.block_m, own.block_n),
        "L1,L1,registers",
        f"tl.dot in steps of {own.block_k}; what is beyond {m} channels is masked.",
    )
    triton.flow(
        [
            [("tl.sum over the tile's pixels", "registers")],
            [(f"{tiles} tiles × {m}", "memory")],
            [("second launch, a program to a sample: tiles in order, mean → 1×1 → tanh → ReLU", "registers")],
        ]
    )
    triton.holds(
        [
            Held("memory", "x once; no map is written", None),
            Held("L1", "A and W of a step (static, sm_90)", sizes.triton_shared("gate_pool_kernel", own)),
            Held("memory", "partial sums of a sample", tiles * m * FLOAT),
        ]
    )
    return picture("gate: 1×1 → ReLU → mean → 1×1 → alphas", f"C → C/2, full size. {SETTING}", [cpu, cuda, triton])
