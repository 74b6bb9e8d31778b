"""Everything that wants a GPU, in stages of minutes: `make gpu-check`, or `python -m benchmarks.gpu_check [STAGE ...]`.

  build      the CPU and the CUDA library in place, for the card that is there (or --library: one built elsewhere)
  parity     every test that runs on the device
  sanitize   compute-sanitizer's memcheck and racecheck over a small network (--tools: others of its tools)
  speed      ours against eager PyTorch, three sizes, three types; routed against our own all open; with kernels that
             overlap and without; kernel by kernel
  train      a training step, by what `ops="auto"` takes on the device and by plain PyTorch
  triton     the Triton backend beside ours in CUDA and eager PyTorch: the network, and a training step
  compile    torch.compile, and TensorRT where it is installed, beside ours

Each runs alone, in a process of its own, for at most --limit seconds, and writes gpu_STAGE.json as it goes: a stage
that is cut leaves what it had. Without a name all run, in this order. Nothing is installed, downloaded or emulated.

  make gpu-check GPU="parity speed --out /tmp/results"
  python -m benchmarks.gpu_check --dry-run         goes through all stages on the CPU, with stand-ins: measures nothing

The exit status is 1 if a stage failed or was cut, 2 if something that is needed is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("libdynroute_cpu.so", "libdynroute_cuda.so")
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
REFUSED = ("Device not supported", "unable to find compute-sanitizer", "not supported on this")
ON_DEVICE = (
    "tests/ops/test_gpu.py", "tests/ops/test_gpu_train.py", "tests/runtime/cuda/test_gpu.py",
    "tests/train/test_gpu_recorded.py", "tests/runtime/triton/test_graphed.py::test_on_a_gpu",
)  # fmt: skip
# A few layers with gates that open and close, every kernel, a graph recorded and replayed.
SANITIZED = "tests.support.cuda.sanitized"
LIMIT = 290  # seconds
Document = dict[str, Any]


def lacking(stages: Sequence[str], dry: bool, library: Path | None) -> list[str]:
    """What these stages need and this machine lacks, a line each."""
    found = []
    if not dry:
        import torch

        if torch.version.cuda is None:
            found.append(f"torch with CUDA: this is torch {torch.__version__}, built for the CPU only")
        elif not torch.cuda.is_available():
            found.append("a GPU: torch.cuda.is_available() is false (driver? CUDA_VISIBLE_DEVICES?)")
        elif torch.cuda.get_device_capability() < (8, 0):
            found.append(f"compute capability 8.0: {torch.cuda.get_device_name()} has less")
    if "build" in stages and library is None:
        tools = {"nvcc": "the CUDA compiler", "c++": "a C++17 compiler", "cmake": "CMake 3.24"}
        found += [f"{tool}: {what}, on the PATH" for tool, what in tools.items() if shutil.which(tool) is None]
    return found


class Run:
    """What the stages are told, and how they run commands.

    Attributes:
        dry: go through the motions on the CPU.
        quick: a look: fewer shapes and rounds.
        library: a folder with both libraries, instead of building them.
        tools: of compute-sanitizer.
        deadline: when the stage's time is up, by time.monotonic().
    """

    def __init__(self, dry: bool, quick: bool, library: Path | None, tools: Sequence[str], limit: float) -> None:
        self.dry, self.quick, self.library, self.tools, self.limit = dry, quick, library, tools, limit
        self.deadline = 0.0

    def command(self, command: list[str], **environment: str) -> Document:
        """Runs a command in the checkout, showing what it prints; its last lines are kept for the results."""
        print("+ " + " ".join(command), flush=True)
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        cut = threading.Event()

        def stop() -> None:
            cut.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(self.deadline - started, 1.0), stop)
        timer.start()
        lines: deque[str] = deque(maxlen=12)
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.strip():
                for folder in (sysconfig.get_path("purelib"), str(ROOT)):  # that only this machine has
                    line = line.replace(folder + os.sep, "")
                lines.append(line.rstrip())
        process.wait()
        timer.cancel()
        # without folders that only this machine has
        shown = " ".join(command).replace(sys.executable, "python").replace(str(ROOT), ".")
        return {
            "command": shown.replace(tempfile.gettempdir(), "TMP"),
            "status": "cut" if cut.is_set() else process.returncode,
            "seconds": round(time.monotonic() - started, 1), "tail": list(lines),
        }  # fmt: skip


def build(run: Run) -> Iterator[Document]:
    """Both libraries into dynroute/lib, for the torch that this Python has and the card that is there."""
    lib = ROOT / "dynroute" / "lib"
    lib.mkdir(exist_ok=True)
    if run.library is not None:
        missing = [name for name in LIBRARIES if not (run.library / name).is_file()]
        if missing:
            yield {"failed": f"{run.library}: wanted {' and '.join(missing)} in it"}
            return
        for name in LIBRARIES:
            if not run.dry:
                shutil.copy2(run.library / name, lib / name)
        yield {"library": str(run.library), "steps": [_load(run)]}
        return
    folder = (Path(tempfile.mkdtemp()) if run.dry else ROOT) / "build" / "gpu"
    architecture = "80-real" if run.dry else f"{_capability()}-real"
    configure = ["cmake", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DDYNROUTE_LIB={folder if run.dry else lib}", "-DDYNROUTE_CUDA=ON"]
    configure += [f"-DDYNROUTE_CUDA_ARCHITECTURES={architecture}"]
    if shutil.which("ninja"):
        configure[1:1] = ["-G", "Ninja"]
    document: Document = {"architecture": architecture, "steps": []}
    compile_ = ["cmake", "--build", str(folder), "--target", "install", "--parallel"]
    for command in [configure] if run.dry else [configure, compile_]:  # compiling takes minutes, and tests do it
        document["steps"].append(run.command(command))
        yield document
        if document["steps"][-1]["status"] != 0:
            return
    if run.dry:
        shutil.rmtree(folder.parents[1])
    document["steps"].append(_load(run))
    yield document


def _capability() -> int:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _load(run: Run) -> Document:
    """Whether a fresh process loads what is in place now."""
    asked = "why_not_loaded" if run.dry else "why_not_cuda"
    code = f"from dynroute.native import library as l; r = l.{asked}(); print(r or 'loaded'); exit(r is not None)"
    return run.command([sys.executable, "-c", code])


def parity(run: Run) -> Iterator[Document]:
    """Each test that runs on the device, and how it ended; pytest's last line is not all that is kept."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junit-xml={report}", *_where_installed(), *ON_DEVICE]
        document: Document = {"steps": [run.command(command)]}
        if report.is_file():
            document["tests"] = read_tests(report)
            if run.dry and any(test["outcome"] != "skipped" for test in document["tests"]):
                document["failed"] = "a test of the device ran without one"
    yield document


def _where_installed() -> list[str]:
    """pytest's flags of plugins: a kernel that hangs ends its test alone, and tests run side by side."""
    flags = {"pytest_timeout": ["--timeout=200", "--timeout-method=thread"], "xdist": ["-n", "12"]}
    return [flag for plugin, its in flags.items() if find_spec(plugin) for flag in its]


def read_tests(report: Path) -> list[dict[str, Any]]:
    """pytest's JUnit report: name, outcome, seconds and, where it did not pass, the first line of why."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):
        why = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        test = {"name": case.get("name"), "seconds": float(case.get("time") or 0), "outcome": "passed"}
        if why is not None:
            test |= {"outcome": "skipped" if why.tag == "skipped" else "failed"}
            test["why"] = (why.get("message") or "").splitlines()[:1]
        found.append(test)
    return found


def sanitize(run: Run) -> Iterator[Document]:
    """compute-sanitizer's tools; where it is missing, or refuses the device, that is said and is no failure."""
    tool = shutil.which("compute-sanitizer")
    document: Document = {"steps": []}
    if tool is None and not run.dry:
        yield document | {"absent": "compute-sanitizer was not found"}
        return
    for name in run.tools:
        flags = [tool or "compute-sanitizer", "--tool", name, "--error-exitcode", "1", "--target-processes", "all"]
        watched = [sys.executable, "-m", SANITIZED]
        command = [*watched, "--dry-run"] if run.dry else [*flags, *watched]
        step = run.command(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1") | {"tool": name}
        refused = [line for line in step["tail"] if any(words in line for words in REFUSED)]
        if step["status"] != 0 and refused:
            step |= {"status": 0, "absent": refused[0]}
        document["steps"].append(step)
        yield document


def _networks(name: str) -> Callable[[Run], Iterator[Document]]:
    def stage(run: Run) -> Iterator[Document]:
        """In a process of its own, that can be cut; it writes what it has measured after each part."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "measured.json"
            flags = [flag for flag, on in (("--dry-run", run.dry), ("--quick", run.quick)) if on]
            step = run.command([sys.executable, "-m", "benchmarks.gpu_check", "--measure", name, str(out), *flags])
            measured = json.loads(out.read_text()) if out.is_file() else {}
            yield {**measured, "steps": [step]}

    return stage


STAGES: dict[str, Callable[[Run], Iterator[Document]]] = {
    "build": build, "parity": parity, "sanitize": sanitize, "speed": _networks("speed"), "train": _networks("train"),
    "triton": _networks("triton"), "compile": _networks("compiled"),
}  # fmt: skip


def measure(name: str, out: Path, dry: bool, quick: bool) -> None:
    """What `_networks` runs."""
    from benchmarks import gpu_clock, gpu_networks

    gpu = gpu_clock.StandIn() if dry else gpu_clock.Gpu()
    gpu.prepare()
    frame: Document = {"device": gpu.describe(), "clocks_before": gpu.clocks()}
    parts = getattr(gpu_networks, name)(gpu, quick)
    for document in tqdm(parts, desc=f"gpu-check {name}", unit="part"):
        write(out, frame | document)
    write(out, frame | document | {"clocks_after": gpu.clocks()})


def write(path: Path, document: Document) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False))
    part.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="where gpu_STAGE.json go (default: benchmarks/results)"
    )
    parser.add_argument("--library", type=Path, help="build: take both libraries from this folder")
    parser.add_argument(
        "--tools", nargs="+", choices=TOOLS, default=TOOLS[:2], help="sanitize: which (default: %(default)s)"
    )
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for a stage (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a look: one size, few rounds")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with stand-ins; measures nothing")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]), options.dry_run, options.quick)
        return 0
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error(f"STAGE: wanted some of {', '.join(STAGES)}, got {unknown[0]!r}")
    stages = options.stages or list(STAGES)
    missing = lacking(stages, options.dry_run, options.library)
    if missing:
        print("gpu-check needs, and this machine lacks:\n" + "\n".join(f"  - {m}" for m in missing), file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options.dry_run, options.quick, options.library, options.tools, options.limit)
    failed = [name for name in stages if not stage(name, run, options.out)]
    if failed:
        print(f"gpu-check: {', '.join(failed)} failed")
    return int(bool(failed))


def stage(name: str, run: Run, out: Path) -> bool:
    """Runs a stage and writes its document as it grows; whether all of it was well."""
    from dynroute.provenance import provenance

    print(f"--- {name}", flush=True)
    started, path = time.monotonic(), out / f"gpu_{name}.json"
    run.deadline = started + run.limit
    frame: Document = {"stage": name, "dry_run": run.dry, "quick": run.quick, "provenance": provenance(0)}
    good = False
    for document in STAGES[name](run):
        good = "failed" not in document and all(step["status"] == 0 for step in document.get("steps", []))
        seconds = round(time.monotonic() - started, 1)
        write(path, {**frame, "seconds": seconds, "good": good, **document})
    print(f"--- {name}: {'good' if good else 'FAILED'}, {time.monotonic() - started:.0f} s, {path}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
