"""What can be said of the Triton kernels without a GPU; `python -m benchmarks.triton_code` writes triton_static.json.

  static     registers, spills and shared memory of every kernel as the operators launch it, for sm_80 and sm_90
  emulated   launches, bytes, instructions, bank conflicts, tensor-core work: counted by tools/ptxsim while an operator
             ran, beside the CUDA kernels of the same operator, architecture and shape

Nothing here is a measurement of a GPU. Not where TRITON_INTERPRET is set: kernels are compiled, not interpreted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import triton_emulated
from benchmarks.harness import SEED
from dynroute.ops.triton import configs, launch
from dynroute.provenance import provenance
from tests.support.triton_cases import CASES
from tests.support.triton_launch import Launched, compiled, usage, why_not

RESULTS = Path(__file__).parent / "results"
ARCHITECTURES = (80, 90)


def row(op: str, launched: Launched, arch: int) -> dict[str, Any]:
    """A kernel as compiled for one launch; in its signature "/16" is behind what Triton was told that 16 divides."""
    source = launched.code.src
    by_16 = {source.fn.arg_names[place] for (place,), found in source.attrs.items() if found}
    signature = [
        f"{name}: {kind}{'/16' if name in by_16 else ''}"
        for name, kind in source.signature.items()
        if kind != "constexpr"
    ]
    return {
        "operator": op, "kernel": launched.kernel, "arch": f"sm_{arch}", "signature": ", ".join(signature),
        "constants": launched.constants, **usage(launched.code),
    }  # fmt: skip


def rows(job: tuple[int, torch.dtype]) -> list[dict[str, Any]]:
    """A row for each kernel of an architecture and type of maps: for each cut, and what is known of its arguments."""
    arch, dtype = job
    configs.forget_tuning()  # what was tuned here is this machine's
    found: dict[int, dict[str, Any]] = {}
    for case in CASES:
        for size in case.maps if dtype in case.types else ():
            with compiled(arch) as launches:
                case.run(*size, dtype)
            for launched in launches:
                if id(launched.code) not in found:
                    found[id(launched.code)] = row(case.op, launched, arch)
    return list(found.values())


def static() -> list[dict[str, Any]]:
    """`rows` of every architecture and type, by as many processes as there are cores; each once."""
    jobs = [(arch, dtype) for arch in ARCHITECTURES for dtype in launch.DTYPES]
    with ProcessPoolExecutor(min(os.cpu_count() or 1, len(jobs)), get_context("spawn")) as pool:
        done = tqdm(pool.map(rows, jobs), total=len(jobs), desc="compiled", unit="type", disable=None)
        every = [one for found in done for one in found]
    return list({json.dumps(one): one for one in every}.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "triton_static.json", help="default: %(default)s")
    parser.add_argument("--only", choices=("static", "emulated"), help="one of the two kinds; default: both")
    options = parser.parse_args()
    parts: dict[str, Any] = {}
    if (reason := why_not(emulates=options.only != "static")) is not None:
        parser.error(f"cannot compile or emulate here: {reason}")
    import triton

    configs.forget_tuning()
    if options.only != "emulated":
        parts["static"] = {"kind": "static", "architectures": ARCHITECTURES, "kernels": static()}
    if options.only != "static":
        parts["emulated"] = {"kind": "emulated", "arch": "sm_80", "operators": triton_emulated.operators()}
    document = {"provenance": provenance(SEED), "triton": triton.__version__, **parts}
    options.out.write_text(json.dumps(document, indent=1, allow_nan=False))
    print(f"results: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
