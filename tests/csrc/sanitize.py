"""Runs the operators' and the engine's tests against a library built with sanitizers: `make sanitize`.

    python tests/csrc/sanitize.py [--build build/sanitize] [pytest arguments, e.g. -k gate]

Builds with AddressSanitizer and UndefinedBehaviorSanitizer into its own folder, never over the package's library, and
runs the tests once for each instruction set of this machine. The first read or write out of bounds, use after free or
undefined behaviour ends the run with exit status 1 and the report. Needs GCC with libasan and libubsan.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The kernels, for each instruction set; and once what is the same for all of them: the bindings' contract with torch.
KERNEL_TESTS = (
    "tests/ops/test_parity.py",
    "tests/ops/test_bits.py",
    "tests/ops/test_training.py",
    "tests/ops/test_node_train.py",
    "tests/ops/test_loss.py",
    "tests/ops/test_aggregate_train.py",
    "tests/ops/test_gate_train.py",
    "tests/models/test_fused.py",
    "tests/native/test_network.py",
)
ONCE = ("tests/ops/test_contract.py", "tests/csrc/test_isa.py::test_isa_by_name")
LEFT_OUT = "not inductor"  # it starts a C++ compiler, which must not run with libasan preloaded
REPORT_LINES = 16


def build(folder: Path) -> Path:
    """The library with sanitizers, up to date."""
    start = time.time()
    configure = ["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), f"-DPython_EXECUTABLE={sys.executable}"]
    library = folder / "lib"
    subprocess.run([*configure, "-DDYNROUTE_SANITIZE=address,undefined", f"-DDYNROUTE_LIB={library}"], check=True)
    subprocess.run(["cmake", "--build", str(folder), "--target", "install"], check=True)
    print(f"sanitize: built in {time.time() - start:.0f} s", flush=True)
    return library / "libdynroute_cpu.so"


def runtime_libraries(folder: Path) -> list[str]:
    """What must be loaded before everything else: Python itself is not built with the sanitizers.

    libstdc++ is among them because libasan looks for __cxa_throw when it starts, before torch brings it in.
    """
    cache = (folder / "CMakeCache.txt").read_text().splitlines()
    compiler = next(line.split("=", 1)[1] for line in cache if line.startswith("CMAKE_CXX_COMPILER:"))
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        if not Path(path.strip()).is_absolute():
            sys.exit(f"sanitize: {compiler} has no {name}: install it, or name a GCC that has with CXX=...")
        found.append(path.strip())
    return found


def environment(library: Path, folder: Path) -> dict[str, str]:
    options = f"print_stacktrace=1:strip_path_prefix={ROOT}/"
    return {
        **os.environ,
        "LD_PRELOAD": " ".join(runtime_libraries(folder)),
        "DYNROUTE_LIBRARY": str(library),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        # no leak check: Python and torch never free much of what they hold at exit
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=1:{options}",
        "UBSAN_OPTIONS": options,
    }


def instruction_sets(env: dict[str, str]) -> list[str]:
    """Those compiled in that this machine runs."""
    code = "import dynroute.native.library as n, json; print('|', *n.build_info()['isas'])"
    names = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if names.returncode != 0:
        sys.exit(f"sanitize: the library does not load\n{names.stdout}{names.stderr}")
    code = "import dynroute.native.library as n, sys; sys.exit(n.why_not_loaded())"
    isas = []
    for isa in names.stdout.split("|")[1].split():
        run = subprocess.run([sys.executable, "-c", code], env={**env, "DYNROUTE_CPU_ISA": isa}, capture_output=True)
        if run.returncode == 0:
            isas.append(isa)
        else:
            print(f"sanitize: {isa} is left out: {run.stderr.decode().strip()}", flush=True)
    return isas


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "sanitize", help="folder to build in")
    parser.add_argument("--isa", help="this instruction set alone (default: each that runs here)")
    options, rest = parser.parse_known_args()
    folder = options.build.resolve()
    try:
        env = environment(build(folder), folder)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        sys.exit(f"sanitize: the library was not built: {error}")
    for i, isa in enumerate(isa for isa in instruction_sets(env) if options.isa in (None, isa)):
        print(f"sanitize: {isa}", flush=True)
        # --capture=sys leaves file descriptor 2 alone: a sanitizer writes there and ends the process
        command = [sys.executable, "-m", "pytest", "-x", "--durations=3", "--capture=sys", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, "-k", LEFT_OUT, *KERNEL_TESTS, *(ONCE if i == 0 else ()), *rest],
            env={**env, "DYNROUTE_CPU_ISA": isa},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        if run.returncode != 0:
            report = [line[:200] for line in run.stderr.splitlines()]
            print("", *report[:REPORT_LINES], "..." * (len(report) > REPORT_LINES), sep="\n")
            print(f"sanitize: {isa}: failed")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
