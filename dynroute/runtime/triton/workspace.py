"""What a call of one shape keeps between its launches: tables and maps, in one piece of memory."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from dynroute.models.config import NetworkConfig
from dynroute.space.wiring import PART_NAMES, SCALES

ALIGN = 256
_FLOAT, _INT, _LONG, _BOOL = torch.float32, torch.int32, torch.int64, torch.bool


class Workspace:
    """The buffers for images [n, in_channels, h, w], where each lies, and how much memory they take.

    Buffers, with rows = L + 1 (maps are channels_last; one at a scale has `size` values):

        node_macs [n, rows, 4, 5], sample_macs [n, 3]   counters
        gates, alphas [rows, n, 4, 3]                   what gates say, or is forced; the same where nodes are
        present_<t>, slots_<t> [n, 4]                   by turns of a row and of the next
        closed [n, 4], lists and counts of `route`      of the row
        sums                                            of a gate's tiles
        maps_<s> [2, n, size]                           a node's two maps
        halves_<s> [n, size]                            what lies between stages of a cell; then up [n, size / 2] and
                                                        down [n, size / 2]; at the end the decoder's map
        stem_a, stem_b                                  the stem's maps
        small_logits [n, classes, h / 4, w / 4]

    Stem and small logits share memory with maps that are not alive then:

        [tables][maps_0 ...    ][maps_1 to 3, halves_1 to 3][halves_0]
        [tables][stem_a][stem_b]
        [tables][small_logits                              ][halves_0]

    The stem's last stage reads stem_b and writes the first of maps_0.
    """

    def __init__(self, config: NetworkConfig, n: int, h: int, w: int, storage: torch.dtype, gate_sums: int) -> None:
        self.n, self.h, self.w, self.storage = n, h, w, storage
        self.bytes = 0
        self._places: dict[str, tuple[int, torch.dtype, tuple[int, ...]]] = {}
        rows = config.layers + 1
        self._put("node_macs", _LONG, n, rows, SCALES, len(PART_NAMES))
        self._put("sample_macs", _LONG, n, 3)
        for name in ("gates", "alphas"):
            self._put(name, _FLOAT, rows, n, SCALES, 3)
        for turn in range(2):
            self._put(f"present_{turn}", _BOOL, n, SCALES)
            self._put(f"slots_{turn}", _INT, n, SCALES)
        self._put("closed", _BOOL, n, SCALES)
        self._put("open_list", _INT, SCALES, n)
        self._put("open_count", _INT, SCALES)
        self._put("path_list", _INT, SCALES, 3, n)
        self._put("path_count", _INT, SCALES, 3)
        self._put("sums", _FLOAT, gate_sums)

        start = self.bytes
        sizes = [(h >> s + 2) * (w >> s + 2) * (config.channels << s) for s in range(SCALES)]
        for s in range(SCALES):
            self._put(f"maps_{s}", storage, 2, n, sizes[s])
        for s in range(1, SCALES):
            self._put(f"halves_{s}", storage, n, sizes[s])
        self._put("small_logits", _FLOAT, n, config.num_classes, (h // 4) * (w // 4), at=start)
        self._put("halves_0", storage, n, sizes[0])
        stem = stem_side(h) * stem_side(w) * config.stem_width
        self._put("stem_a", storage, n, stem, at=start)
        after = max(n * stem, n * sizes[0]) * storage.itemsize
        self._put("stem_b", storage, n, stem, at=start + _aligned(after))

    def _put(self, name: str, dtype: torch.dtype, *shape: int, at: int | None = None) -> None:
        offset = self.bytes if at is None else at
        self._places[name] = (offset, dtype, shape)
        self.bytes = max(self.bytes, _aligned(offset + prod(shape) * dtype.itemsize))

    def views(self, memory: Tensor) -> dict[str, Tensor]:
        """The buffers by name, in memory uint8 [at least `bytes`]."""
        return {
            name: memory[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)
            for name, (offset, dtype, shape) in self._places.items()
        }


def stem_side(side: int) -> int:
    """A side of the stem's maps: a 3x3 convolution of stride 2, without padding."""
    return (side - 3) // 2 + 1


def _aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
