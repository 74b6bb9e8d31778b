# ruff: noqa: RUF001  (signs of mathematics)
"""`upsampled_cross_entropy`."""

from __future__ import annotations

from benchmarks.tiles import sizes
from benchmarks.tiles.panels import Area, Cells, Held, Panel, picture
from benchmarks.tiles.sizes import FLOAT, ceil_div

VALUES = sizes.number("dynroute/ops/triton/upsampled_cross_entropy.py", "VALUES")


def loss_gaps() -> str:
    """Factor 4."""
    factor, across, down = 4, 24, 12
    gaps = Panel(
        "Gaps",
        "full-size rows between the centres of two low-resolution rows are blends of these two; columns likewise",
    )
    gaps.enlarged(
        Cells(
            across,
            down,
            [Area(6, 6, factor, factor)],
            "4 × 4 full-size pixels between four centres read these four and give gradients to no others",
            12,
        ),
        [(x, y) for x in range(2, across, factor) for y in range(2, down, factor)],
    )
    flow = Panel("A pixel", "of full size, which is nowhere stored")
    flow.flow(
        [
            [("logits of four centres", "memory")],
            [("blended between rows, between columns", "registers")],
            [("max, exp, ∑: the loss", "registers"), ("softmax - one-hot, times the weight", "registers")],
            [("tasks in order, in double", "memory"), ("back by the same weights", "registers")],
            [("", ""), ("gradient of the logits", "memory")],
        ]
    )
    return picture("upsampled_cross_entropy: gaps", "Upsampling by a factor of 4.", [gaps, flow])


def upsampled_cross_entropy() -> str:
    """19 classes, logits at a quarter of the size."""
    n, k, h, w, factor = 4, 19, 256, 512, 4
    gaps = ceil_div(h + 1, 16)
    bands = ceil_div(h + 1, gaps)
    cpu = Panel("CPU", f"a task: a band of {gaps} gaps of rows ({bands} of a sample), in vectors of 16 columns")
    cpu.map((128, 64), [Area(0, 17, 128, 4), Area(0, 17, 4, 4, "L1")], name="logits, at a quarter of")
    cpu.flow(
        [
            [(f"2 rows as planes, {k} × {w}", "L2")],
            [("columns at one phase: both rows", "L1")],
            [("4 full-size rows, class by class: max, exp, ∑", "registers")],
            [(f"gradient of both rows, 3 × {k} × {w} each", "L2")],
        ]
    )
    planes = k * (w + 16) * FLOAT
    cpu.holds(
        [
            Held("L2", "two rows of logits", 2 * planes),
            Held("L2", "gradients: own, before, behind, of two rows", 6 * planes),
            Held("L1", f"five strips of {k} × 16", 5 * k * 16 * FLOAT),
            Held("memory", "a row that a band gives to the one before, added at the end", w * k * FLOAT),
        ]
    )
    tile, rows, columns, low = sizes.loss_tiling(n, w, h, factor)
    cuda = Panel(
        "CUDA",
        f"a task: the gradient of {tile} × {rows} low-resolution pixels; 128 threads, a full-size column to each, "
        "down through the gaps",
    )
    cuda.map((128, 64), [Area(31, 16, tile // 4, rows // 4)], name="logits, at a quarter of")
    cuda.flow(
        [
            [(f"a row of {low} columns (cp.async)", "L1")],
            [(f"between columns: {k} classes of two rows", "registers")],
            [("4 pixels: max, exp, ∑", "registers")],
            [("gradients of both rows, of this column", "registers")],
            [("gather: each low-resolution pixel adds its two gaps", "L1")],
        ]
    )
    shares, slots, staged = 2 * factor * FLOAT, 2 * 128 * k * FLOAT, 2 * low * k * FLOAT
    cuda.holds(
        [
            Held("L1", f"two rows of {low} columns × {k}", staged),
            Held("L1", f"128 columns × {k}, two rows: logits, then gradients", slots),
            Held("L1", "shares of a gap's pixels", shares),
            Held("registers", f"4 × {k} values of a thread", 4 * k * FLOAT),
            Held("memory", f"passes of {columns} full-size columns; borders of tasks are read and done twice", None),
        ]
    )
    lanes = 1 << (k - 1).bit_length()
    together = VALUES // lanes
    triton = Panel(
        "Triton", f"a program: {together} gaps (of rows and columns) in a row × all classes, padded to {lanes}"
    )
    triton.map((128, 64), [Area(31, 16, together // 4, 1)], name="logits, at a quarter of")
    triton.flow(
        [
            [("logits of the four centres of each gap", "registers")],
            [("4 × 4 pixels, one after the other: max, exp, ∑", "registers")],
            [("what the gap gives to its four corners", "registers")],
            [("the corners of all gaps", "memory")],
            [("gather_kernel: a logit adds up its four gaps, in order", "registers")],
        ]
    )
    corners = (h + 1) * (w + 1) * 4 * k
    triton.holds(
        [
            Held("registers", f"four corners and their gradients, {together} × {lanes} each", 8 * VALUES * FLOAT),
            Held("memory", f"a sample's corners, {h + 1} × {w + 1} × 4 × {k}", corners * FLOAT),
        ]
    )
    return picture(
        "upsampled_cross_entropy: nothing at full size",
        f"{n} × {k} classes × {h} × {w}, factor {factor}: labels of {h * factor} × {w * factor}. All devices in "
        "float32.",
        [cpu, cuda, triton],
    )
