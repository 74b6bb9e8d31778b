"""Chooses the cuts of Triton's kernels that no GPU has measured; `python -m benchmarks.triton_cuts` writes
dynroute/ops/triton/configs.json.

The candidates of `dynroute bench --tune --backend triton` are compiled for sm_80 and sm_90; what spills, or wants more
than 48 KB of shared memory, is out. Of the rest the cheapest by an estimate is taken: a multiprocessor's share of the
programs, what each loads and multiplies, and how often it waits (`cost`). An estimate only ranks candidates. What
float16 takes is taken to be bfloat16's too. Entries that a GPU has measured stay as they are. Not where
TRITON_INTERPRET is set: kernels are compiled.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache

import torch
import triton
from tqdm import tqdm

from benchmarks.triton_code import ARCHITECTURES, usage
from dynroute.measure.triton_tuning import calls, candidates
from dynroute.models.config import NetworkConfig
from dynroute.ops.triton import configs
from dynroute.ops.triton.cuts import NAMES, Cut, Entry, Key, read_cuts, write_cuts
from tests.support import cases
from tests.support.triton_launch import compiled, why_not

MOST_SHARED = 48 << 10  # bytes of a program: what every GPU grants unasked
MULTIPROCESSORS = {80: 108, 90: 132}
SHARED = {80: 164 << 10, 90: 228 << 10}  # bytes of a multiprocessor; of it 1 KB goes with each program
PRODUCTS = {80: 1024, 90: 2048}  # multiply-accumulates of 16 bits in a clock of a multiprocessor
FLOAT32 = {80: 64, 90: 128}
LOADED = 64  # bytes in a clock of a multiprocessor, from the second-level cache
SCALAR = 64  # multiply-accumulates of float32 in a clock of a multiprocessor, outside a product
CHANNELS = 128
WAIT = 600  # clocks from a load to its value, where nothing hides them
PIXELS = {16: 32768, 32: 32768, 64: 32768, 128: 8192, 256: 2048, 512: 512}  # of a 512x1024 image's map, by channels
# Which of the launches of `sepconv_train` and its backward are which family; all others are of maps.
TRAINING = {
    "forward_kernel": "train_forward", "product_kernel": "train_product", "outer_kernel": "train_outer",
    "depthwise_kernel": "train_depthwise",
}  # fmt: skip
LIKE = {"conv": "transform"}  # chosen by the compiled kernel that is most like its own
TAPS = {"sepconv": 9, "train_forward": 9, "conv": 9, "train_depthwise": 18, "aggregate": 6, "train_map": 3}
SUMS = 880  # instructions of a thread, as the emulator counts them, to add up a tile's taps: whatever its size
PARTS = 512  # programs that a weight's gradient is shared out to


@cache
def jobs(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A call of each operator and family, on 128 channels; the code is the same for all channels that 16 divides."""
    found = calls(NetworkConfig(channels=64, small_gate=True), 128, 128, dtype, torch.device("cpu"))
    of_scale = {call.key.op: call.run for call in found if call.key.channels == CHANNELS}  # a scale that has all paths
    triton_ops, mask = torch.ops.dynroute_triton, torch.tensor([True, False])
    x, depthwise, pointwise, gamma, beta, mean, var = cases.sepconv_train(2, CHANNELS, 16, 16, 2)
    weights, how = (depthwise, pointwise, gamma, beta), (mask, 1, True, True, False, "")
    x = x.to(dtype)

    def train() -> None:
        out, raw, stats = triton_ops.sepconv_train(x, *weights, mean, var, *how, 1e-5, False)
        triton_ops.sepconv_train_backward(out, x, *weights, raw, stats, *how, False, [True] * 5)

    return of_scale | {family: train for family in configs.FAMILIES if family not in LIKE}


@cache
def static(op: str, cut: Cut, dtype: torch.dtype, arch: int) -> dict[str, int]:
    """The most that any kernel of an operator or family takes with this cut: registers, stack and local memory of a
    thread, shared bytes of a program."""
    dtype = torch.float16 if dtype == torch.bfloat16 else dtype  # whose code is alike
    with configs.assume(arch), configs.using(Key(op, CHANNELS, dtype, arch), cut), compiled(arch) as launches:
        jobs(dtype)[op]()
    cuts = [launched for launched in launches if {"BLOCK_M", "BLOCK_N"} <= set(launched.constants)]
    if op in configs.FAMILIES:
        cuts = [launched for launched in cuts if TRAINING.get(launched.kernel, "train_map") == op]
    used = [usage(launched.code) for launched in cuts]
    return {name: max(of[name] for of in used) for name in used[0]}


def cost(key: Key, cut: Cut, used: dict[str, int]) -> float:
    """Clocks of a multiprocessor for one image's map, estimated: to rank candidates, no prediction of a time."""
    size, taps, c, pixels = key.dtype.itemsize, TAPS.get(key.op, 1), key.channels, PIXELS[key.channels]
    m, n, k = cut[:3]
    rate = (FLOAT32 if size == 4 else PRODUCTS)[key.arch]
    if key.op == "train_outer":
        blocks = triton.cdiv(c, n) * triton.cdiv(c, k)
        parts = min(triton.cdiv(pixels, m), triton.cdiv(PARTS, blocks))
        programs, steps = blocks * parts, triton.cdiv(pixels, m * parts)
        clocks = steps * m * (n * k / rate + k * 9 / SCALAR + (2 * n + 9 * k) * size / LOADED)
    elif key.op in configs.MAPS:
        programs, steps = triton.cdiv(pixels, m) * triton.cdiv(c, n), 0
        clocks = m * n * taps * (size / LOADED + 1 / SCALAR)
        clocks += SUMS * cut.num_warps / 4 if key.op == "train_depthwise" else 0
    else:
        programs, steps = triton.cdiv(pixels, m) * triton.cdiv(c, n), triton.cdiv(c, k)
        products = m * n * k * (taps if key.op == "conv" else 1) / rate
        filtered = m * k * taps / SCALAR if key.op in ("sepconv", "train_forward") else 0
        clocks = steps * (products + filtered + (m * taps + n) * k * size / LOADED)
    share = triton.cdiv(programs, MULTIPROCESSORS[key.arch])
    fits = min(
        65536 // (32 * cut.num_warps * ((used["registers"] + 7) // 8 * 8)),
        SHARED[key.arch] // (used["shared_bytes"] + 1024), 64 // cut.num_warps, 32,
    )  # fmt: skip
    waits = 1 + steps / (cut.num_stages - 1)
    return share * clocks + triton.cdiv(share, fits) * waits * WAIT


def chosen(key: Key) -> Cut:
    """The cheapest cut of those that fit."""

    def at_least(cut: Cut) -> float:
        """What it costs whatever it is compiled to: where others are cheaper, that takes no compiler to know."""
        return cost(key, cut, {"registers": 1, "shared_bytes": 0})

    tried = candidates(key)
    if key.op in configs.FAMILIES:  # take long to compile
        tried = [cut for cut in tried if (cut.block_m if key.op == "train_outer" else cut.block_k) == 32] or tried
    best, least = None, float("inf")
    for cut in sorted(tried, key=lambda cut: (at_least(cut), cut)):
        if at_least(cut) >= least:
            break
        used = static(LIKE.get(key.op, key.op), cut, key.dtype, key.arch)
        fits = not (used["stack_bytes"] or used["local_bytes"]) and used["shared_bytes"] <= MOST_SHARED
        if fits and cost(key, cut, used) < least:
            best, least = cut, cost(key, cut, used)
    if best is None:
        raise RuntimeError(f"{key}: no candidate fits")
    return best


def entries() -> Iterator[Entry]:
    """Of an architecture above the lowest only where it has another cut than the one below."""
    measured = {entry.key: entry for entry in read_cuts(configs.TABLE) if entry.measured is not None}
    keys = [
        (op, dtype, channels)
        for op in (*configs.OPERATORS, *configs.FAMILIES)
        for dtype in NAMES.values()
        for channels in configs.CLASSES
    ]
    for op, dtype, channels in tqdm(keys, desc="cuts", unit="entry", disable=None):
        below = None
        for arch in ARCHITECTURES:
            key = Key(op, channels, dtype, arch)
            entry = measured.pop(key, None) or Entry(key, chosen(key))
            if entry.measured is not None or entry.cut != below:
                yield entry
            below = entry.cut
    yield from measured.values()


def main() -> int:
    if (reason := why_not()) is not None:
        print(f"cannot compile here: {reason}", file=sys.stderr)
        return 2
    write_cuts(
        configs.TABLE,
        list(entries()),
        basis="measured null: chosen by registers and shared memory as compiled, and an estimate; not measured",
        compiled_by={"triton": triton.__version__, "torch": str(torch.__version__)},
        chosen_by="python -m benchmarks.triton_cuts",
        kernels_of_families=LIKE,
    )
    print(f"cuts: {configs.TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
