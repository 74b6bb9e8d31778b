"""Everything that wants a GPU, in one command: `make gpu-check`, or `python -m benchmarks.gpu_check`.

Builds the CUDA library in place, runs all parity tests on the device, the compute-sanitizer's four tools, and the
benchmarks against eager PyTorch, torch.compile and TensorRT (if it is there).  Runs in the Python it is called with;
installs and downloads nothing.  Results: benchmarks/results/gpu.json and gpu.png.

  python -m benchmarks.gpu_check                 all of it: some ten minutes
  python -m benchmarks.gpu_check --quick         a look at each part
  python -m benchmarks.gpu_check --only tests    build and tests

The exit status is 1 if anything failed, 2 if something that is needed is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
STEPS = ("build", "tests", "sanitizer", "benchmarks")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
# A few layers with gates that open and close, every kernel, a graph captured and replayed.
SANITIZED = "tests.support.cuda.sanitized"
TESTS = ("tests/csrc/cuda", "tests/runtime")


def missing() -> list[str]:
    """What is needed and not here, a line each."""
    found = []
    try:
        import torch

        if torch.version.cuda is None:
            found.append(f"torch with CUDA: this is torch {torch.__version__}, built for the CPU only")
        elif not torch.cuda.is_available():
            found.append("a GPU: torch.cuda.is_available() is false (driver? CUDA_VISIBLE_DEVICES?)")
        elif torch.cuda.get_device_capability() < (8, 0):
            found.append(f"compute capability 8.0: {torch.cuda.get_device_name()} has less")
    except ImportError as error:
        found.append(f"torch with CUDA: {error}")
    for tool, what in (
        ("nvcc", "the CUDA compiler, on the PATH"),
        ("c++", "a C++17 compiler"),
        ("cmake", "CMake 3.24"),
    ):
        if shutil.which(tool) is None:
            found.append(f"{tool}: {what}")
    for module in ("numpy", "safetensors", "pytest", "tqdm", "matplotlib", "yaml", "PIL"):
        if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode:
            found.append(f"the Python package {module}")
    return found


def run(command: list[str], **environment: str) -> dict[str, Any]:
    """Runs a command in the checkout, showing what it prints; its last lines are kept for the results."""
    print("+ " + " ".join(command), flush=True)
    started = time.time()
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    return {
        "command": " ".join(command), "status": process.wait(), "seconds": round(time.time() - started, 1),
        "tail": lines[-8:],
    }  # fmt: skip


def build() -> list[dict[str, Any]]:
    """The CPU and the CUDA library into dynroute/lib, for the torch that this Python has."""
    folder = ROOT / "build" / "gpu"
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    if shutil.which("ninja"):
        configure[1:1] = ["-G", "Ninja"]
    done = [run([*configure, f"-DDYNROUTE_LIB={ROOT / 'dynroute' / 'lib'}", "-DDYNROUTE_CUDA=ON"])]
    if done[-1]["status"] == 0:
        done.append(run(["cmake", "--build", str(folder), "--target", "install", "--parallel"]))
    return done


def tests() -> list[dict[str, Any]]:
    """Parity on the device: everything of CUDA under tests, and the runtime's tests on the CPU beside it."""
    return [run([sys.executable, "-m", "pytest", *TESTS])]


def sanitizer() -> list[dict[str, Any]]:
    """compute-sanitizer's tools over a small network; said so where the tool is not there."""
    if shutil.which("compute-sanitizer") is None:
        return [{"command": "compute-sanitizer", "status": 0, "tail": ["absent: compute-sanitizer was not found"]}]
    flags = ["--error-exitcode", "1", "--target-processes", "all"]
    return [
        run(
            ["compute-sanitizer", "--tool", tool, *flags, sys.executable, "-m", SANITIZED],
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",
        )
        for tool in TOOLS
    ]


def benchmarks(quick: bool) -> dict[str, Any]:
    """See benchmarks/gpu.py."""
    import torch

    from benchmarks import gpu
    from dynroute.provenance import provenance

    shapes = gpu.QUICK_SHAPES if quick else gpu.SHAPES
    rounds = 20 if quick else 100
    properties = torch.cuda.get_device_properties(0)
    result: dict[str, Any] = {
        "provenance": provenance(gpu.SEED),
        "device": {
            "name": properties.name, "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory, "cuda": torch.version.cuda,
        },
        "clocks_before": gpu.clocks(), "copy": gpu.copy_rate(), "all_open": [], "routed": [],
    }  # fmt: skip
    for shape in shapes:
        for dtype in (torch.float16,) if quick else (torch.float16, torch.bfloat16, torch.float32):
            print(f"all open {shape} {dtype}", flush=True)
            # torch.compile takes minutes for a shape
            peers = dtype == torch.float16
            result["all_open"].append(gpu.all_open(*shape, dtype, rounds, peers))
        print(f"routed {shape}", flush=True)
        result["routed"].append(gpu.routed(*shape, torch.float16, rounds))
    result["clocks_after"] = gpu.clocks()
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown of the benchmarks."""
    lines = [
        "| network, all open | type | " + " | ".join(("ours", "eager", "torch_compile", "tensorrt")) + " |",
        "|" + "---|" * 6,
    ]
    for row in result["all_open"]:
        cells = [
            f"{row['ms']['cold'][name]['p50']:.2f}" if name in row["ms"]["cold"] else "-"
            for name in ("ours", "eager", "torch_compile", "tensorrt")
        ]
        lines.append(
            f"| {'x'.join(map(str, row['shape']))} | {row['dtype'].removeprefix('torch.')} | "
            + " | ".join(cells)
            + " |"
        )
    lines += ["", "| routed | share of nodes | ms p50 | realised share |", "|" + "---|" * 4]
    for row in result["routed"]:
        for share, facts in row["patterns"].items():
            lines.append(
                f"| {'x'.join(map(str, row['shape']))} | {share} | {facts['ms']['p50']:.2f} | "
                f"{facts['realised_share']['value']:.2f} |"
            )
    return "\n".join(lines)


def plot(result: dict[str, Any], path: Path) -> None:
    """Time against executed work, one line per shape, with the ideal line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    for row in result["routed"]:
        points = sorted((facts["macs"]["value"], facts["ms"]["p50"]) for facts in row["patterns"].values())
        work, time_ = [p[0] / points[-1][0] for p in points], [p[1] / points[-1][1] for p in points]
        axes.plot(work, time_, "o-", label="x".join(map(str, row["shape"])))
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="ideal")
    axes.set(
        xlabel="executed work / all open",
        ylabel="time / all open",
        title=result["device"]["name"],
        xlim=(0, 1.05),
        ylim=(0, 1.1),
    )
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one shape, few rounds")
    parser.add_argument("--only", choices=STEPS, action="append", help="run these steps only (may be repeated)")
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "gpu.json", help="where results go (default: %(default)s)"
    )
    options = parser.parse_args()
    lacking = missing()
    if lacking:
        print(
            "gpu-check needs, and this machine lacks:\n" + "\n".join(f"  - {line}" for line in lacking), file=sys.stderr
        )
        return 2
    wanted = options.only or STEPS
    document: dict[str, Any] = {"steps": {}}
    failed = False
    for step, work in (("build", build), ("tests", tests), ("sanitizer", sanitizer)):
        if step in wanted:
            document["steps"][step] = work()
            failed |= any(done["status"] != 0 for done in document["steps"][step])
            if failed and step == "build":
                break
    if "benchmarks" in wanted and not (failed and "build" in document["steps"] and "tests" not in document["steps"]):
        document |= benchmarks(options.quick)
        print(table(document))
        plot(document, options.json.with_suffix(".png"))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(document, indent=1))
    print(f"results: {options.json}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
