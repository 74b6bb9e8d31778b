"""What Triton makes of its kernels without a GPU; `python -m benchmarks.triton_code` writes triton_static.json.

  static     registers, spills and shared memory of every configuration, for sm_80 and sm_90

Nothing here is a measurement of a GPU. Not where TRITON_INTERPRET is set: kernels are compiled, not interpreted.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.cuda_code import cuobjdump
from benchmarks.harness import SEED
from dynroute.ops.triton import configs, launch
from dynroute.provenance import provenance

RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = (80, 90)
CHANNELS = (16, 64)  # one of each cut
POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
MASKS, SUMS, INDICES = ("open", "present", "exists", "closed", "after"), ("sums",), ("slots", "open_list", "open_count",
    "path_list", "path_count", "next_slots")  # fmt: skip


def kernels() -> Iterator[tuple[str, Any, dict[str, Any], dict[str, Any]]]:
    """Each kernel's name, what Triton compiles, its constants and options, for each type and cut: (op, kernel, ...)."""
    from dynroute.ops.triton import aggregate, gate, route, sepconv, transform

    for dtype in launch.DTYPES:
        for channels in CHANNELS:
            for op, kernel, flags in (
                ("transform", transform.transform_kernel, {"HAS_MASK": True}),
                ("sepconv", sepconv.sepconv_kernel, {"HAS_MASK": True, "HAS_RESIDUAL": True, "RELU": True}),
                ("gate", gate.gate_pool_kernel, {"HAS_MASK": True, "SMALL": True}),
            ):
                cut = configs.find(op, channels, dtype)
                yield op, kernel, {"dtype": dtype, "channels": channels}, {**flags, **cut.product(), "WIDE": False}
            every = dict.fromkeys(("HAS_DOWN", "HAS_KEEP", "HAS_UP", "HAS_ALPHAS"), True)
            paths = {"PATH_UP": 0, "PATH_KEEP": 1, "PATH_DOWN": 2}
            cut = configs.find("aggregate", channels, dtype)
            yield "aggregate", aggregate.aggregate_kernel, {"dtype": dtype, "channels": channels}, {
                **every, **paths, **cut.tile(),
            }  # fmt: skip
        ends = {"HAS_MASK": True, "GATES": 3, "ACTIVATION": "softmax", "BLOCK": 64, "num_warps": 4, "num_stages": 3}
        yield "gate", gate.gate_end_kernel, {"dtype": dtype}, ends
    constants = {"CLOSED": 1e-4, **paths, "BLOCK": 128, "num_warps": 4, "num_stages": 3}
    yield "route", route.route_kernel, {"dtype": torch.float32}, constants


def compiled(kernel: Any, dtype: torch.dtype, constants: dict[str, Any], arch: int) -> Any:
    """The kernel for one architecture; pointers are maps' but for masks, sums and lists, numbers are 32 bits."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    fixed = {name: value for name, value in constants.items() if name not in options}
    signature = {}
    for name in kernel.arg_names:
        is_number = name in (
            "height", "width", "out_width", "small_width", "pixels", "tiles", "channels", "out_channels", "stride", "n",
        )  # fmt: skip
        kind = "constexpr" if name in fixed else "i32" if is_number else POINTERS[dtype]
        signature[name] = "*i1" if name in MASKS else "*fp32" if name in SUMS else "*i32" if name in INDICES else kind
    places = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers, and bytes of stack and local memory, of a thread; empty without cuobjdump."""
    tool = cuobjdump()
    if tool is None:
        return {}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
    return dict(zip(("registers", "stack_bytes", "local_bytes"), map(int, found)))


def rows() -> Iterator[dict[str, Any]]:
    for op, kernel, what, constants in tqdm(list(kernels()), desc="triton", unit="kernel", disable=None):
        for arch in ARCHITECTURES:
            made = compiled(kernel, what["dtype"], constants, arch)
            yield {
                "operator": op, "kernel": kernel.__name__, "arch": f"sm_{arch}", **what, "dtype": str(what["dtype"]),
                "constants": {name: value for name, value in constants.items() if name.startswith(("BLOCK", "num"))},
                "shared_bytes": made.metadata.shared, **usage(made.asm["cubin"]),
            }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "triton_static.json", help="default: %(default)s")
    out = parser.parse_args().out
    if launch.interpreted():
        parser.error("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")
    import triton

    document = {"kind": "static", "triton": triton.__version__, "kernels": list(rows()), "provenance": provenance(SEED)}
    out.write_text(json.dumps(document, indent=1, allow_nan=False))
    print(f"results: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
