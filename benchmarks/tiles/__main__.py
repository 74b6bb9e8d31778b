"""The pictures of docs/kernels/operators: of each operator its tile on every device, in numbers of the code.

    python -m benchmarks.tiles                     # all of them
    python -m benchmarks.tiles transform gate      # some
    python -m benchmarks.tiles --out /tmp/pictures

A map of 64 x 128 pixels and 64 channels; CUDA and Triton in float16, the CPU in float32 with AVX-512.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.tiles.flows import chain_flow, gate_flow, node_flow
from benchmarks.tiles.loss import loss_gaps, upsampled_cross_entropy
from benchmarks.tiles.products import gate, sepconv, transform
from benchmarks.tiles.routing import aggregate, aggregate_backward, route
from benchmarks.tiles.sizes import ROOT
from benchmarks.tiles.training import chain_train, gate_train, node_train

FOLDER = ROOT / "docs" / "kernels" / "operators"
DRAWINGS: dict[str, Callable[[], str]] = {
    drawing.__name__: drawing
    for drawing in (
        sepconv, transform, gate, route, aggregate, aggregate_backward, chain_flow, chain_train, node_flow, node_train,
        gate_flow, gate_train, loss_gaps, upsampled_cross_entropy,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tiles",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(DRAWINGS)} (default: all)")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in DRAWINGS]:
        parser.error(f"NAME: wanted some of {', '.join(DRAWINGS)}, got {', '.join(unknown)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or DRAWINGS:
        (args.out / f"{name}.svg").write_text(DRAWINGS[name]())
        print(args.out / f"{name}.svg")


if __name__ == "__main__":
    main()
