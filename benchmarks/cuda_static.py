"""What can be said of the CUDA kernels without a GPU; `python -m benchmarks.cuda_static` writes cuda_static.json.

  static     registers, spills, instructions, occupancy: read off what nvcc and ptxas made for sm_80 and sm_90
  emulated   bytes, sectors, bank conflicts, tensor-core work: counted by tools/ptxsim while a network ran
  estimated  microseconds by roofline, from shapes and data sheets: max(bytes / bandwidth, work / peak) and a launch;
             and what the emulated instructions, as many for each multiply-accumulate, take to issue

Nothing here is a measurement of a GPU; `make gpu-check` makes those.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dynroute
from benchmarks.cuda_code import ARCHITECTURES, DEVICES, Device, compile_all, resident_blocks
from benchmarks.cuda_operators import operators
from benchmarks.cuda_training import training
from benchmarks.harness import SEED, number
from dynroute.models.config import NetworkConfig
from dynroute.provenance import provenance
from dynroute.runtime.cuda import emulator
from dynroute.runtime.cuda.emulated import EmulatedExecutor
from dynroute.runtime.cuda.launch_list import DeviceLimits, read_launches
from dynroute.space.wiring import SCALES, build_space

RESULTS = Path(__file__).parent / "results"
CLASSES = 19
IMAGE = (1, 1024, 2048)  # of the launches and the estimate
EMULATED = {
    "layers": 4,
    "image": (1, 128, 256),
}  # C = 64: the channels of the real network on a map that can be waited for
LAUNCH_SECONDS = 1.5e-6  # between two kernels of a graph: an assumption
HALF = 2  # bytes
# of results: of the emulator
COUNTERS = {
    "load_bytes": "gld_bytes",
    "store_bytes": "gst_bytes",
    "distinct_load_bytes": "gld_unique_bytes",
    "distinct_store_bytes": "gst_unique_bytes",
    "shared_wavefronts": "shared_wavefronts",
    "ideal_shared_wavefronts": "shared_ideal_wavefronts",
    "mma_macs": "mma_macs",
    "fma_macs": "fma_macs",
    "instructions": "instructions",
}


def limits(device: Device) -> DeviceLimits:
    """As a launch list wants them."""
    return DeviceLimits(device.capability, device.multiprocessors, device.shared_per_block, device.shared)


def launches(device: Device, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The launches of L16, C = 64 on one image of IMAGE, and how many of their blocks a multiprocessor holds."""
    net = dynroute.create_model("dynamic_raw_l16", num_classes=CLASSES).eval()
    executor = EmulatedExecutor(net, dtype, limits=limits(device))
    launch_list = executor.launch_list(*IMAGE, *IMAGE[1:])
    somewhere = 256  # addresses decide nothing but that they are not null
    found = launch_list.launches([somewhere] * len(launch_list.buffers()[0]), somewhere, executor.table)
    code = {
        kernel.name: kernel
        for kernel in compile_all()
        if kernel.arch == ("sm_90" if device.capability >= 90 else "sm_80")
    }
    rows = []
    for launch in read_launches(found):
        kernel = code[f"{launch.kernel}_{emulator.SUFFIX[dtype]}"]
        shared = launch.shared + kernel.shared
        rows.append({
            "kernel": launch.kernel, "blocks": launch.blocks, "threads": launch.threads, "shared_bytes": shared,
            "blocks_per_multiprocessor": resident_blocks(device, kernel.registers, launch.threads, shared),
        })  # fmt: skip
    return rows


def static() -> list[dict[str, Any]]:
    """A row per kernel, type and architecture."""
    return [
        {
            "kernel": kernel.name, "arch": kernel.arch, "registers": kernel.registers, "stack_bytes": kernel.stack,
            "spill_bytes": kernel.spills, "local_accesses": kernel.local, "static_shared_bytes": kernel.shared,
            "instructions": sum(kernel.instructions.values()), "mma": kernel.tensor,
            "global_loads_by_bits": kernel.accesses("load"), "global_stores_by_bits": kernel.accesses("store"),
        }
        for kernel in compile_all()
    ]  # fmt: skip


def emulated(dtype: torch.dtype) -> dict[str, Any]:
    """Counters by kernel of one forward, everything open."""
    torch.manual_seed(SEED)
    net = dynroute.create_model("dynamic_raw_l16", layers=EMULATED["layers"], num_classes=CLASSES).eval()
    n, h, w = EMULATED["image"]  # type: ignore[misc]
    executor = EmulatedExecutor(net, dtype, limits=limits(DEVICES[0]), counters=True)
    executor(torch.randn(n, 3, h, w), None, h, w)
    totals: dict[str, dict[str, float]] = {}
    for kernel, stats in executor.statistics:
        total = totals.setdefault(kernel, {"launches": 0})
        total["launches"] += 1
        for key, counter in COUNTERS.items():
            total[key] = total.get(key, 0) + stats[counter]
    for total in totals.values():
        total["bank_conflict_ways"] = total["shared_wavefronts"] / max(total["ideal_shared_wavefronts"], 1)
        distinct = total["distinct_load_bytes"] + total["distinct_store_bytes"]
        total["requested_over_distinct_bytes"] = (total["load_bytes"] + total["store_bytes"]) / max(distinct, 1)
    return {"dtype": str(dtype), "shape": EMULATED, "kernels": totals}


@dataclass
class Work:
    """A launch's share of the network: multiply-accumulates on tensor cores and on CUDA cores, and bytes that have to
    move when every launch reads and writes its maps once and nothing stays in L2."""

    kernel: str
    tensor_macs: float = 0
    simt_macs: float = 0
    bytes: float = 0

    @property
    def macs(self) -> float:
        return self.tensor_macs + self.simt_macs

    def seconds(self, device: Device) -> float:
        return LAUNCH_SECONDS + max(
            self.bytes / device.bandwidth, 2 * self.tensor_macs / device.tensor, 2 * self.simt_macs / device.simt
        )

    def issue_seconds(self, device: Device, instructions: dict[str, float]) -> float:
        """By issue slots: a warp's instruction for each 32 threads', four a cycle on each multiprocessor."""
        return self.macs * instructions[self.kernel] / 32 / (4 * device.multiprocessors * device.clock)


def network_work(
    config: NetworkConfig, h: int, w: int, fused: set[int], fused_stem: bool, size: int = HALF
) -> Iterator[Work]:
    """Everything open, one image; `fused`: scales whose cells are done in one pass; `fused_stem`: the stem's stages."""
    pixels = [(h >> (s + 2)) * (w >> (s + 2)) for s in range(SCALES)]
    channels = [config.channels << s for s in range(SCALES)]
    maps = [p * c * size for p, c in zip(pixels, channels)]
    width, stem = config.stem_width, (h // 2) * (w // 2)
    yield Work("stem_conv", stem * 27 * width, 0, 3 * h * w * 4 + stem * width * size)
    stages = [
        Work("sepconv", stem * width**2, stem * 9 * width, 2 * stem * width * size),
        Work("sepconv", pixels[0] * width * channels[0], pixels[0] * 9 * width, stem * width * size + maps[0]),
    ]
    if fused_stem:  # what lies between is neither stored nor read
        first, second = stages
        moved = first.bytes + second.bytes - 2 * stem * width * size
        tensor, simt = first.tensor_macs + second.tensor_macs, first.simt_macs + second.simt_macs
        stages = [Work("stem_stages", tensor, simt, moved)]
    yield from stages
    space = build_space(config.layers)
    for nodes in space:
        gate, cell, last = Work("aggregate_route"), Work("cell"), Work("stage_paths")
        stages = [Work("sepconv"), last]
        for node in nodes:
            s = node.scale
            c, p, m = channels[s], pixels[s], maps[s]
            sources = sum({0: 0.25, 1: 1.0, 2: 1.0}[path] for path in range(3) if node.sources[path]) if node.row else 0
            gate.bytes += (sources + (1 if sources else 0)) * m if node.row else m
            gate.tensor_macs += p * c * c // 2
            gate.simt_macs += p * c * 4
            if s in fused:
                cell.bytes += 2 * m
                cell.tensor_macs += 2 * p * c * c
                cell.simt_macs += 2 * p * c * 9
            else:
                for stage, moved in zip(stages, (2, 3)):
                    stage.bytes += moved * m
                    stage.tensor_macs += p * c * c
                    stage.simt_macs += p * c * 9
            for path, share in ((0, 0.5), (2, 0.5)):
                if node.paths[path]:
                    last.bytes += (share + (1 if path == 0 else 0.25)) * m
                    last.tensor_macs += p * c * c // 2
        yield from (work for work in (gate, cell, stages[0], last) if work.bytes)
    for s in reversed(range(SCALES)):
        out = channels[s] if s == 0 else channels[s] // 2
        coarse = maps[s] / 4 if s < SCALES - 1 else 0
        yield Work("merge", pixels[s] * channels[s] * out, 0, maps[s] + coarse + pixels[s] * out * size)
    yield Work(
        "predictor", pixels[0] * 9 * channels[0] * config.num_classes, 0, maps[0] + pixels[0] * config.num_classes * 4
    )
    yield Work("upsample", 0, h * w * config.num_classes * 4, (pixels[0] + h * w) * config.num_classes * 4)


def instructions_per_mac(run: dict[str, Any]) -> dict[str, float]:
    """Of what `emulated` ran: threads' instructions for each multiply-accumulate; a large map takes fewer."""
    config = dynroute.create_model("dynamic_raw_l16", layers=EMULATED["layers"], num_classes=CLASSES).config
    macs: dict[str, float] = {}
    for one in network_work(config, *EMULATED["image"][1:], fused={0}, fused_stem=True):  # type: ignore[index]
        macs[one.kernel] = macs.get(one.kernel, 0) + one.macs
    return {kernel: run["kernels"][kernel]["instructions"] / total for kernel, total in macs.items()}


def estimate(instructions: dict[str, float]) -> dict[str, Any]:
    """Roofline of the network at IMAGE in float16, per kernel, on the GPUs of DEVICES; launches, work and bytes are the
    first one's. instructions: of `instructions_per_mac`."""
    config = dynroute.create_model("dynamic_raw_l16", num_classes=CLASSES).config
    by_kernel: dict[str, dict[str, Any]] = {}
    seconds = dict.fromkeys((device.name for device in DEVICES), 0.0)
    bounded = dict(seconds)
    for device in DEVICES:
        # 128 channels, and the stem, are fused where the shared memory has room for tiles (cell_pays, stem_stages_pay)
        room = device.shared_per_block > 200 << 10
        for one in network_work(config, *IMAGE[1:], fused={0, 1} if room else {0}, fused_stem=room):
            total = by_kernel.setdefault(one.kernel, {"launches": 0, "gmacs": 0.0, "mbytes": 0.0, "microseconds": {}})
            issue = total.setdefault("issue_microseconds", {})
            if device is DEVICES[0]:
                total["launches"] += 1
                total["gmacs"] += one.macs * 1e-9
                total["mbytes"] += one.bytes * 1e-6
            total["microseconds"][device.name] = total["microseconds"].get(device.name, 0) + one.seconds(device) * 1e6
            slots = one.issue_seconds(device, instructions)
            issue[device.name] = issue.get(device.name, 0) + slots * 1e6
            seconds[device.name] += one.seconds(device)
            bounded[device.name] += max(one.seconds(device), LAUNCH_SECONDS + slots)
    return {
        "assumptions": f"data-sheet peaks, nothing stays in L2, {LAUNCH_SECONDS * 1e6:g} us a launch, perfect overlap",
        "image": [IMAGE[0], 3, *IMAGE[1:]], "dtype": "float16", "kernels": by_kernel,
        "network_milliseconds": {name: number("estimated", 1e3 * value) for name, value in seconds.items()},
        "network_milliseconds_with_issue_slots": {
            name: number("estimated", 1e3 * value) for name, value in bounded.items()
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "cuda_static.json", help="default: %(default)s")
    options = parser.parse_args()
    reason = emulator.why_not()
    if reason is not None:
        parser.error(f"cannot compile or emulate here: {reason}")
    runs = [emulated(dtype) for dtype in (torch.float16, torch.float32)]
    document = {
        "provenance": provenance(SEED),
        "static": {"kind": "static", "architectures": ARCHITECTURES, "kernels": static()},
        "launches": {
            "kind": "computed", "image": [IMAGE[0], 3, *IMAGE[1:]], "dtype": "float16",
            "devices": {device.name: launches(device, torch.float16) for device in DEVICES},
        },
        "emulated": {"kind": "emulated", "runs": runs},
        "operators": operators(limits(DEVICES[0])),
        "training": training(),
        "roofline": {"kind": "estimated", **estimate(instructions_per_mac(runs[0]))},
    }  # fmt: skip
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1))
    print(f"results: {options.json}")


if __name__ == "__main__":
    main()
