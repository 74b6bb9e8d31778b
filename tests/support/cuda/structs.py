"""csrc/cuda/kernels/params.h in ctypes, field by field; `test_structs.py` compares sizes with the compiler."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_uint, c_void_p

SCALES, PATHS, LISTS = 4, 3, 4
UP, KEEP, DOWN = 0, 1, 2
PRESENT, OPEN, UP_OPEN, DOWN_OPEN = range(4)
X, OUT, BETWEEN, PLAIN = range(4)  # StageMap


class Struct(ctypes.Structure):
    """Refuses what is no field; ctypes would keep it as an attribute."""

    def __init__(self, *values: object, **fields: object) -> None:
        unknown = fields.keys() - {name for name, *_ in self._fields_}
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        super().__init__(*values, **fields)


class Divisor(Struct):
    _fields_ = [("multiplier", c_uint), ("shift", c_int), ("by", c_int)]


class Cut(Struct):
    _fields_ = [("channels", c_int), ("parts", Divisor)]


class Matrix(Struct):
    _fields_ = [("weight", c_void_p), ("shift", c_void_p), *((name, c_int) for name in ("k", "n", "k_pad", "n_pad"))]


class MapShape(Struct):  # of csrc/contract/geometry.h
    _fields_ = [(name, c_int) for name in ("h", "w", "c")]


class ScaleMaps(Struct):
    _fields_ = [("map", c_void_p * 2), ("halves", c_void_p), ("shape", MapShape)]


class Node(Struct):
    _fields_ = [
        *((name, c_int) for name in ("present", "aliased", "x_map")),
        *((name, c_float) for name in ("source_down", "source_keep", "source_up")),
        *((name, c_int) for name in ("closed", "out_map")),
        ("weight", c_float * PATHS),
        ("unused", c_int),
    ]


class Row(Struct):
    _fields_ = [(name, c_void_p) for name in ("nodes", "counts", "samples")]


class Io(Struct):
    _fields_ = [
        (name, c_void_p) for name in ("images", "gates", "logits", "labels", "alphas", "node_macs", "sample_macs")
    ]


class InitCallParams(Struct):
    _fields_ = [
        ("value", Io), ("io", c_void_p), ("counters", c_void_p), ("counter_count", c_int), ("first", Row),
        ("n", c_int), ("rows", c_int),
    ]  # fmt: skip


class StemConvParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("weight", Matrix), ("out", c_void_p),
        *((name, c_int) for name in ("n", "h_in", "w_in", "h_out", "w_out")), ("across", Divisor), ("down", Divisor),
    ]  # fmt: skip


class StemPlanesParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("weight", Matrix), ("out", c_void_p),
        *((name, c_int) for name in ("n", "h_in", "w_in", "h_out", "w_out", "planes")),
        *((name, Divisor) for name in ("of_tap", "across", "down")),
    ]  # fmt: skip


class StemStagesParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("x", c_void_p), ("out", c_void_p), ("depthwise", c_void_p * 2), ("pointwise", Matrix * 2),
        *((name, c_int) for name in ("n", "h_in", "w_in", "h_out", "w_out")), ("across", Divisor), ("down", Divisor),
    ]  # fmt: skip


class SepconvStage(Struct):
    _fields_ = [
        ("depthwise", c_void_p), ("pointwise", Matrix),
        *((name, c_int) for name in ("c_in", "h_in", "w_in", "h_out", "w_out", "stride", "from_place", "to_place")),
        ("plain_x", c_void_p), ("plain_out", c_void_p), ("residual", c_int), ("relu", c_int),
        ("plain_residual", c_void_p),
    ]  # fmt: skip


class SepconvParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("row", Row), ("maps", ScaleMaps * SCALES), ("stage", SepconvStage * SCALES),
        *((name, c_int) for name in ("n", "row_index", "rows", "stem", "enough")),
    ]  # fmt: skip


class CellParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("row", Row), ("maps", ScaleMaps * SCALES), ("depthwise", (c_void_p * 2) * SCALES),
        ("pointwise", (Matrix * 2) * SCALES), *((name, c_int) for name in ("n", "row_index", "rows")),
    ]  # fmt: skip


class AggregateTiling(Struct):
    _fields_ = [
        *((name, c_int) for name in ("blocks_y", "blocks_x", "tiles", "run")),
        *((name, Divisor) for name in ("across", "tasks", "groups")),
        *((name, c_int) for name in ("whole", "width", "shift", "totals", "ring", "ahead", "stays")),
    ]


class AggregateRouteParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("row", Row), ("next", Row), ("maps", ScaleMaps * SCALES), ("gate", Matrix * SCALES),
        ("fc_weight", c_void_p * SCALES), ("fc_bias", c_void_p * SCALES), ("partials", c_void_p * SCALES),
        ("node_arrivals", c_void_p), ("row_arrivals", c_void_p),
        *((name, c_int) for name in ("activation", "small_gate", "n", "row_index", "rows")),
        ("tiling", AggregateTiling * SCALES),
    ]  # fmt: skip


class PathCut(Struct):
    _fields_ = [("of_sample", c_int), ("part", Cut)]


class StagePathsParams(Struct):
    _fields_ = [
        ("cells", SepconvParams), ("up", Matrix * SCALES), ("down", Matrix * SCALES), ("finished", c_void_p),
        ("ticket", c_void_p), ("cuts", (PathCut * SCALES) * 2), ("half_w", Divisor * SCALES),
    ]  # fmt: skip


class MergeParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("row", Row), ("maps", ScaleMaps), ("scale", c_int), ("coarse", c_void_p), ("weight", Matrix),
        ("out", c_void_p), ("n", c_int), ("part", Cut), ("tiles", Divisor), ("across", Divisor),
    ]  # fmt: skip


class PredictorParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("x", c_void_p), ("weight", Matrix), ("out", c_void_p),
        *((name, c_int) for name in ("n", "h", "w", "c")),
        *((name, Divisor) for name in ("tiles", "across", "groups")),
    ]  # fmt: skip


class UpsampleParams(Struct):
    _fields_ = [
        ("io", c_void_p), ("x", c_void_p), *((name, c_int) for name in ("n", "h", "w", "classes", "out_h", "out_w")),
        ("tiles", Divisor), ("across", Divisor),
    ]  # fmt: skip
