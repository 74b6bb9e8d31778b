# ruff: noqa: RUF001  (signs of mathematics)
"""`route`, `aggregate` and its backward."""

from __future__ import annotations

import torch

from benchmarks.tiles import sizes
from benchmarks.tiles.panels import Area, Cells, Held, Panel, picture
from benchmarks.tiles.sizes import FLOAT, HALF, MAP, SETTING, C, H, W, ceil_div, constant
from dynroute.ops import reference


def route() -> str:
    """A row of the space in the middle, four samples."""
    exists = torch.tensor([[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    alphas = torch.tensor(
        [
            [[0, 0.9, 0.4], [0.2, 0.7, 0], [0, 0, 0], [0.6, 0.1, 0]],
            [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0, 0.8], [0, 0, 0]],
            [[0, 0.3, 0], [0, 0, 0], [0, 0.9, 0], [0.1, 0.2, 0]],
            [[0, 0.8, 0.8], [0.9, 0.2, 0.1], [0, 0, 0.4], [0, 0.7, 0]],
        ]
    )
    n = len(alphas)
    present = torch.ones(n, 4, dtype=torch.bool)
    present[2, 1] = False
    slots = torch.zeros(n, 4, dtype=torch.int32)
    _, lists, counts, _, _, closed, after, next_slots = reference.route(alphas, present, exists, slots)

    given = Panel(
        "what goes in, what comes out",
        "alphas up / keep / down of four samples, sample 2 absent at 1/8; up and down hand on from open nodes, "
        "keep from present ones",
    )
    shown = [
        [
            f"{i}",
            *(
                "absent"
                if not present[i, s]
                else " ".join(f"{v:.1f}"[1:] if v < 1 else "1" for v in alphas[i, s].tolist())
                for s in range(4)
            ),
        ]
        for i in range(n)
    ]
    scales = [f"1/{4 << s}" for s in range(4)]
    given.table(["n", *scales], shown, [20, 72, 72, 72, 72])
    rows = [
        ["open", *(" ".join(str(i) for i in lists[s, : counts[s]].tolist()) or "none" for s in range(4))],
        ["count", *(str(int(counts[s])) for s in range(4))],
        ["closed", *(" ".join(str(i) for i in range(n) if closed[i, s]) or "none" for s in range(4))],
        ["next", *(" ".join(str(i) for i in range(n) if after[i, s]) or "none" for s in range(4))],
        ["slot 1", *(" ".join(str(i) for i in range(n) if next_slots[i, s]) or "none" for s in range(4))],
    ]
    given.y += 6
    given.table(["list", *scales], rows, [56, 63, 63, 63, 63])
    given.say(
        "Lists name samples in order, -1 behind them. next: present in the next row. slot 1: whose H lies in the "
        "other of the two maps; all were 0.",
        11,
    )

    cpu = Panel("CPU", "one loop, sample by sample and scale by scale, on the calling thread")
    cpu.flow(
        [
            [("alphas × 4 scales × 3 paths", "memory")],
            [("route_of: closed, weights", "registers")],
            [("open[count++] = i", "memory"), ("next_present[i][target] = true", "memory")],
        ]
    )
    cuda = Panel("CUDA", "one block of 128 threads: a warp to each scale, a lane to each of 32 samples")
    cuda.flow(
        [
            [
                ("warp 0: 1/4", "registers"),
                ("warp 1: 1/8", "registers"),
                ("warp 2: 1/16", "registers"),
                ("warp 3: 1/32", "registers"),
            ],
            [("handed[4][32]: what each node hands on, a bit to a path", "L1")],
            [("ballot, population count: a lane's place in its list", "registers")],
        ]
    )
    cuda.holds([Held("L1", "handed", 4 * 32 * 4)])
    cpu.head("Triton", "a program to each scale, 128 samples at a time; it looks at its neighbours' states itself")
    cpu.flow(
        [
            [("alphas, scale above", "memory"), ("its own alphas", "memory"), ("alphas, scale below", "memory")],
            [("tl.cumsum: a sample's place in its list", "registers")],
            [("the scale's lists, counts, slots and next nodes", "memory")],
        ]
    )
    return picture(
        "route: alphas → open lists, counts, slots, next nodes",
        "Some hundred bytes a sample: a launch is what it costs. The lists are computed by the reference.",
        [given, cpu, cuda],
    )


def aggregate() -> str:
    """Three sources."""
    block, chunk = constant("cpu/kernels/aggregate.cpp", "kBlock"), C
    rows = constant("cpu/kernels/tasks_of_jobs.h", "kAggregateSize") // (W * C)
    pixels = block // chunk
    cpu = Panel("CPU", f"a task: a band of {rows} rows; within a row blocks of {pixels} pixels of up")
    cpu.map(
        MAP,
        [Area(0, 2 * rows, W, rows), Area(0, 2 * rows, W, 1, "L1")],
        Cells(8, 2, [Area(0, 0, 8, 2, "L1")], "up: the two rows around, blended first, then columns"),
    )
    cpu.flow(
        [
            [("down, keep: a row", "memory"), ("up: rows of 3/4 and 1/4", "memory")],
            [("", ""), (f"{pixels} + 2 blended pixels", "L1")],
            [("down, keep, up: one fma each, in this order", "registers")],
            [("X: a row", "memory")],
        ]
    )
    cpu.holds(
        [
            Held("L1", f"up between rows, ({pixels} + 2) × {chunk}", (pixels + 2) * chunk * FLOAT),
            Held("memory", "each source once, X once: 1 + 1 + 1/4 + 1 maps", None),
        ]
    )
    cuda = Panel("CUDA", "a thread: 2 × 2 pixels of 8 channels (16 bytes); 128 threads: 32 × 2 pixels × 64 channels")
    cuda.map(
        MAP,
        [Area(32, 24, 32, 2)],
        Cells(3, 3, [], "3 × 3 pixels of up, 9 loads, serve 2 × 2 of X, which alone would need 16", 14),
    )
    cuda.flow(
        [
            [("down: 4", "memory"), ("keep: 4", "memory"), ("up: 9 loads", "memory")],
            [("17 × 16 bytes on their way before the first is used", "registers")],
            [("word by word: half2 products and sums", "registers")],
            [("X: 4 × 16 bytes", "memory")],
        ]
    )
    cuda.holds(
        [
            Held("registers", "loads of a thread", 17 * 16),
            Held("memory", "each source once, up's neighbours again; X once", None),
        ]
    )
    own = sizes.cut("aggregate")
    triton = Panel("Triton", f"a program: {own.block_m} pixels × {own.block_n} channels; {own.num_warps} warps")
    triton.map(
        MAP,
        [Area(32, 24, own.block_m, 1)],
        Cells(
            3,
            3,
            [Area(1, 1, 1, 1), Area(2, 1, 1, 1), Area(1, 2, 1, 1), Area(2, 2, 1, 1)],
            "4 corners of up for a pixel: own, beside, below, across",
            14,
        ),
    )
    triton.flow(
        [
            [("down: 1", "memory"), ("keep: 1", "memory"), ("up: 4 loads", "memory")],
            [("weights 9, 3, 3, 1 of 16", "registers")],
            [("sums in float", "registers")],
            [("X: 1", "memory")],
        ]
    )
    triton.holds(
        [
            Held("registers", f"{own.block_m} × {own.block_n} sums", own.block_m * own.block_n * FLOAT),
            Held("memory", "each source once, up's corners again; X once", None),
        ]
    )
    return picture("aggregate: X = α·down + α·keep + α·up×2", SETTING, [cpu, cuda, triton])


def aggregate_backward() -> str:
    """All gradients wanted."""
    rows = constant("cpu/kernels/tasks_of_jobs.h", "kAggregateSize") // (2 * W * C)
    cpu = Panel("CPU", f"a task: {rows} pairs of rows of the gradient G, each with the row of up behind it")
    cpu.map(
        MAP,
        [Area(0, 16, W, 2 * rows), Area(0, 16, W, 2, "L1")],
        Cells(4, 4, [Area(1, 1, 2, 2, "L1")], "a pixel of up gathers 4 × 4 of G by 1/4, 3/4, 3/4, 1/4 each way", 12),
    )
    cpu.flow(
        [
            [("G: a pair of rows and its neighbours; down, keep, up", "memory")],
            [("gradients of down, keep, up", "memory"), ("G × source, sums by lanes", "registers")],
            [("", ""), ("sums of a task, in double", "memory")],
            [("", ""), ("alphas: tasks in order", "registers")],
        ]
    )
    cuda = Panel(
        "CUDA", "a thread: 2 × 2 pixels of G and one of up, 8 channels, eight times over in a task; 128 threads"
    )
    run = constant("cuda/kernels/aggregate_backward.h", "kAggregateBackwardRun")
    units = ceil_div(H, 2) * ceil_div(W, 2) * C * HALF // 16
    tasks = ceil_div(units, sizes.GEMM_THREADS * run)
    cuda.map(
        MAP,
        [Area(0, 16, W, 4)],
        Cells(4, 4, [Area(1, 1, 2, 2)], "16 loads of G, 12 of them also a neighbour's, from L1 and L2", 12),
    )
    cuda.flow(
        [
            [("G: 4 × 4 pixels; down, keep: 2 × 2; up: 1", "memory")],
            [("gradients of down, keep, up", "memory"), ("sums of a thread, in float", "registers")],
            [("", ""), (f"{tasks} tasks × 3, in double", "memory")],
            [("", ""), ("the sample's last block: alphas", "registers")],
        ]
    )
    cuda.holds([Held("memory", "partial sums of a sample", tasks * 3 * sizes.DOUBLE)])
    own = sizes.cut("aggregate")
    triton = Panel(
        "Triton",
        f"a launch for each source; a program: {own.block_m} of its pixels × {own.block_n} channels; "
        f"{own.num_warps} warps",
    )
    triton.map(
        MAP,
        [Area(0, 16, own.block_m, 1)],
        Cells(4, 4, [Area(1, 1, 2, 2)], "16 loads of G for a pixel of up, one for a pixel of down or keep", 12),
    )
    triton.flow(
        [
            [("G; the source, for its alpha", "memory")],
            [("the source's gradient", "memory"), ("G × source, tl.sum", "registers")],
            [("", ""), ("a number of each program", "memory")],
            [("", ""), ("a launch more: the alpha, in double", "registers")],
        ]
    )
    programs = ceil_div(H * W, own.block_m) * ceil_div(C, own.block_n)
    triton.holds([Held("memory", "numbers of a sample, of a source", programs * FLOAT)])
    return picture(
        "aggregate_backward: gradients of sources and alphas",
        SETTING,
        [cpu, cuda, triton],
    )
