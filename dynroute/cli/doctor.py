"""Says which backends run here and why the others do not, what the native library was built with, and versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

HELP = "say what runs on this machine, and why the rest does not"
EXAMPLES = ("dynroute doctor", "dynroute doctor --json doctor.json")
PACKAGES = ("numpy", "safetensors", "pillow", "triton")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """doctor has no arguments of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    from dynroute import __version__, _native
    from dynroute.provenance import provenance
    from dynroute.runtime.executor import BACKENDS, why_not

    reason = _native.why_not_loaded()
    built = _native.build_info() if reason is None else None
    reasons = {backend: why_not(backend) for backend in BACKENDS}
    machine = provenance()["machine"]
    result: dict[str, Any] = {
        "versions": {
            "dynroute": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{package: _version(package) for package in PACKAGES},
        },
        "machine": {
            **machine,
            "system": f"{platform.system()} {platform.machine()}",
            "isa": torch.backends.cpu.get_cpu_capability(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "native": built,
        "native_reason": reason,
        "backends": reasons,
        "auto": "cpu" if reasons.get("cpu") is None else "reference",
    }
    _print(result)
    return result


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(result: dict[str, Any]) -> None:
    print("versions")
    for name, value in result["versions"].items():
        print(f"  {name:<12} {value or 'not installed'}")
    print("\nmachine")
    machine = result["machine"]
    print(f"  {'cpu':<12} {machine['cpu']} ({machine['system']})")
    print(f"  {'cores':<12} {machine['cores']}, torch uses {machine['threads']} threads")
    print(f"  {'isa':<12} {machine['isa']} (as torch dispatches)")
    print(f"  {'gpu':<12} {machine['gpu'] or 'none that torch sees'}")
    print("\nnative library")
    if result["native"] is None:
        print(f"  not loaded: {result['native_reason']}")
    else:
        for key, value in result["native"].items():
            print(f"  {key:<12} {json.dumps(value) if isinstance(value, (dict, list)) else value}")
    print("\nbackends")
    for name, reason in result["backends"].items():
        print(f"  {name:<12} {'runs here' if reason is None else f'no: {reason}'}")
    print(f"  {'auto':<12} takes {result['auto']}")
