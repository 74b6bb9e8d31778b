"""Says which backends run here and why the others do not, what the native library was built with, what the planner of
its tiles knows and which tuning is in force, and versions."""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dynroute.models import create_model
from dynroute.native import library, planner
from dynroute.ops.backends import NAMES, NETWORK, USERS, choose, targets, why_not
from dynroute.ops.triton import configs
from dynroute.provenance import provenance
from dynroute.runtime.cpu.tuning_file import load_tuning
from dynroute.version import __version__

HELP = "say what runs on this machine, and why the rest does not"
EXAMPLES = ("dynroute doctor", "dynroute doctor --json doctor.json")
PACKAGES = ("numpy", "safetensors", "pillow", "triton")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """doctor has no arguments of its own."""


def run(args: argparse.Namespace) -> dict[str, Any]:
    reason = library.why_not_loaded()
    no_planner = planner.why_not()
    tuning = load_tuning()  # as the first runtime does
    result: dict[str, Any] = {
        "versions": {
            "dynroute": __version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            **{package: _version(package) for package in PACKAGES},
        },
        "machine": {
            **provenance()["machine"],
            "system": f"{platform.system()} {platform.machine()}",
            "isa": torch.backends.cpu.get_cpu_capability(),
            "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        },
        "native": library.build_info() if reason is None else None,
        "native_reason": reason,
        "planner": planner.machine() if no_planner is None else None,
        "planner_reason": no_planner,
        "tuning": {**asdict(tuning), "path": str(tuning.path) if tuning.path else None},
        "triton_tuning": _of_triton(),
        "backends": {name: why_not(NETWORK, name) for name in NAMES},
        "operators": {op: {name: why_not(op, name) for name in USERS} for op in targets() if op != NETWORK},
        "auto": _automatic(),
    }
    _print(result)
    return result


def _of_triton() -> dict[str, Any]:
    """What became of the tuned cuts of its kernels."""
    tuning = configs.load_tuning()
    return {**asdict(tuning), "path": str(tuning.path) if tuning.path else None}


def _automatic() -> dict[str, dict[str, str]]:
    """What `auto` takes for a network on the CPU and, where there is one, on a GPU; and why."""
    net = create_model("dynamic_tiny")
    chosen = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        choice = choose(NETWORK, net.to(device))
        chosen[device] = {"backend": choice.backend.name, "reason": choice.reason}
    return chosen


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _bytes(number: int) -> str:
    """In KiB or MiB, exact."""
    return f"{number >> 20} MiB" if number % (1 << 20) == 0 else f"{number / 1024:g} KiB"


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
    print("\nplanner")
    if result["planner"] is None:
        print(f"  not there, plans are the model's: {result['planner_reason']}")
    else:
        for key, value in result["planner"].items():
            print(f"  {key:<12} {_bytes(value) if key.endswith('_bytes') else value}")
        tuning = result["tuning"]
        used = f"{tuning['used']} entries used" if tuning["used"] or not tuning["reason"] else "not used"
        print(f"  {'tuning':<12} {' '.join(filter(None, (tuning['path'], used)))}", end="")
        print(f" ({tuning['reason']})" if tuning["reason"] else "")
    of_triton = result["triton_tuning"]
    used = f"{of_triton['entries']} entries used" if of_triton["entries"] else f"not used ({of_triton['reason']})"
    print(f"\ntriton\n  {'tuning':<12} {' '.join(filter(None, (of_triton['path'], used)))}")
    print("\nbackends of the network, fastest first")
    _print_backends(result["backends"])
    for device, taken in result["auto"].items():
        on = "a GPU" if device == "cuda" else "the CPU"
        print(f"  {'auto':<14} takes {taken['backend']} for a network on {on}: {taken['reason']}")
    alike: dict[tuple[tuple[str, str | None], ...], list[str]] = {}
    for op, reasons in result["operators"].items():
        alike.setdefault(tuple(reasons.items()), []).append(op)
    for reasons, operators in alike.items():
        print(f"\nbackends of the operators {', '.join(operators)}")
        _print_backends(dict(reasons))


def _print_backends(reasons: dict[str, str | None]) -> None:
    for name, reason in reasons.items():
        print(f"  {name:<14} {'runs here' if reason is None else f'no: {reason}'}")
