"""Lines of code of each operator on each backend, as the table of docs/kernels/operators/README.md.

    python -m benchmarks.operator_lines             # prints it
    python -m benchmarks.operator_lines --write     # puts it into the page

Lines that are neither blank nor comment (of Python, nor docstring). A file belongs to an operator if no other operator
needs it; what several share is listed apart, not divided. The network's own kernels are left out.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "kernels" / "operators" / "README.md"
BEGIN, END = "<!-- lines: python -m benchmarks.operator_lines --write -->", "<!-- /lines -->"

# Where an operator's files lie; the other devices' folders are below csrc.
BACKENDS = ("CPU", "CUDA", "Triton")
FOLDERS = (
    "csrc/cpu/kernels",
    "csrc/cpu/planner",
    "csrc/cpu/ops",
    "csrc/cuda/kernels",
    "csrc/cuda/ops",
    "csrc/bindings",
    "dynroute/ops",
    "dynroute/ops/triton",
    "dynroute/ops/triton/train",
)
CPU, CUDA, TRITON = "csrc/cpu/", "csrc/cuda/", "dynroute/ops/triton/"


def _below(folder: str, names: str) -> list[str]:
    return [folder + name for name in names.split()]


OWN: dict[str, dict[str, list[str]]] = {
    "sepconv": {
        "CPU": _below(CPU, "kernels/sepconv.cpp ops/sepconv.cpp"),
        "CUDA": _below(CUDA, "kernels/sepconv.cu"),
        "Triton": _below(TRITON, "sepconv.py"),
    },
    "transform": {
        "CPU": _below(CPU, "kernels/transform.cpp ops/transform.cpp"),
        "CUDA": _below(CUDA, "kernels/transform.cu kernels/transform.h kernels/pointwise.cuh kernels/pointwise.h"),
        "Triton": _below(TRITON, "transform.py"),
    },
    "gate": {
        "CPU": _below(CPU, "kernels/gate.cpp ops/gate.cpp"),
        "CUDA": _below(
            CUDA, "kernels/gate.cu kernels/gate.h kernels/gate.cuh kernels/gate_tiles.cuh kernels/aggregate_route.h"
        ),
        "Triton": _below(TRITON, "gate.py"),
    },
    "route": {
        "CPU": _below(CPU, "ops/route.cpp"),
        "CUDA": _below(CUDA, "kernels/route.cu kernels/route.h kernels/route.cuh"),
        "Triton": _below(TRITON, "route.py"),
    },
    "aggregate": {
        "CPU": _below(
            CPU, "kernels/aggregate.cpp kernels/aggregate_backward.cpp kernels/aggregate_backward.h ops/aggregate.cpp"
        ),
        "CUDA": _below(
            CUDA,
            "kernels/aggregate.cu kernels/aggregate.h kernels/aggregate_backward.cu kernels/aggregate_backward.h",
        ),
        "Triton": _below(TRITON, "aggregate.py aggregate_backward.py"),
    },
    "sepconv_train": {"CPU": _below(CPU, "ops/sepconv_train.cpp"), "CUDA": [], "Triton": []},
    "transform_train": {"CPU": _below(CPU, "ops/transform_train.cpp"), "CUDA": [], "Triton": []},
    "node_train": {
        "CPU": _below(CPU, "kernels/train_node.cpp kernels/train_node_jobs.h ops/node_train.cpp ops/node_call.h"),
        "CUDA": _below(CUDA, "kernels/train_hidden.cu kernels/train_alphas.cu ops/node_train_call.h"),
        "Triton": _below(TRITON, "train/node.py"),
    },
    "gate_train": {
        "CPU": _below(CPU, "kernels/train_gate.cpp kernels/train_gate.h ops/gate_train.cpp"),
        "CUDA": _below(
            CUDA,
            "kernels/train_gate_begin.cu kernels/train_gate_pool.cu kernels/train_gate_end.cu ops/gate_train_call.h",
        ),
        "Triton": _below(TRITON, "train/gate.py"),
    },
    "upsampled_cross_entropy": {
        "CPU": _below(
            CPU, "kernels/upsampled_loss.cpp kernels/loss_jobs.h kernels/vexp.h ops/upsampled_cross_entropy.cpp"
        ),
        "CUDA": _below(CUDA, "kernels/upsampled_loss.cu kernels/upsampled_loss.h ops/loss_call.h"),
        "Triton": _below(TRITON, "upsampled_cross_entropy.py"),
    },
}

# By what they are for; a name that ends in / takes what else lies in that folder.
SHARED: dict[str, list[str]] = {
    "schema, checks of arguments": ["csrc/bindings/"],
    "Python: registry, autograd, registration, gradients, statistics": ["dynroute/ops/"],
    "CPU: vectors, jobs, tasks, choice of instruction set": _below(
        CPU + "kernels/",
        "simd.h target.h guard.h jobs.h kernels.h tasks_of_jobs.h table.cpp isa.cpp scratch.cpp scratch.h memory.h",
    ),
    "CPU: depthwise and pointwise products, tiles, packing": _below(
        CPU + "kernels/", "depthwise.h depthwise_tiles.h pixels.h pointwise.cpp pointwise_amx.cpp tiles.h pack.h"
    ),
    "CPU: the planner, of `sepconv` and the network": [CPU + "planner/"],
    "CPU: the end of a gate": [CPU + "kernels/gate_epilogue.h"],
    "CPU: stages of training": _below(
        CPU,
        "kernels/train_forward.cpp kernels/train_backward.cpp kernels/train_jobs.h kernels/train_rows.h "
        "kernels/train_output.h kernels/outer.h ops/train_chain.h ops/train_stages.h ops/synchronise.cpp "
        "ops/synchronise.h",
    ),
    "CPU: bindings": _below(CPU + "ops/", "bind.h packed_weights.h"),
    "CUDA: primitives, products, depthwise, what launches agree on": _below(
        CUDA + "kernels/",
        "primitives.cuh gemm.cuh depthwise.cuh depthwise_patch.cuh sepconv.h sepconv_item.cuh pull.cuh arrival.cuh "
        "block_sum.cuh params.h params_ops.h prepare.cu prepare.h",
    ),
    "CUDA: stages of training": [
        *_below(
            CUDA + "kernels/",
            "params_train.h train_prepare.cu train_forward.cu train_norm.cu train_apply.cu train_sums.cu "
            "train_norm_backward.cu train_product.cu train_outer.cu train_depthwise.cu train_reduce.cu train_shapes.h "
            "train_source.cuh train_tiles.cuh train_columns.cuh train_norms.cuh",
        ),
        *_below(CUDA + "ops/", "train_builder.h train_chain.h chain_calls.h"),
    ],
    "CUDA: calls as lists of launches, bindings": [CUDA + "ops/"],
    "Triton: launching, cuts, pieces, registration": [TRITON],
    "Triton: stages of training": [TRITON + "train/"],
}
# The network's, which no operator needs.
NETWORK = [
    *_below(
        CPU, "kernels/upsample.cpp kernels/probe.cpp ops/network.cpp ops/info.cpp ops/planner_module.cpp ops/probe.cpp"
    ),
    *_below(
        CUDA + "kernels/",
        "aggregate_route.cu cell.cu cell.h cell_stage.cuh init_call.cu init_call.h merge.cu merge.h path_item.cuh "
        "predictor.cu predictor.h stage_paths.cu stage_paths.h stem_conv.cu stem_conv.h stem_planes.cu "
        "stem_planes.h stem_stages.cu stem_stages.h tile_scheduler.cuh upsample.cu upsample.h",
    ),
    "csrc/bindings/network_checks.h",
]
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh")


def lines_of(text: str, is_python: bool) -> int:
    """Lines that are neither blank nor comment; of Python nor docstring."""
    if not is_python:
        text = re.sub(r"/\*.*?\*/", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL)
        return sum(1 for line in text.splitlines() if line.strip() and not line.strip().startswith("//"))
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for child in node.body:  # docstrings, of attributes too
                if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant) and child.end_lineno:
                    skipped |= set(range(child.lineno, child.end_lineno + 1))
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    said: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            said |= set(range(token.start[0], token.end[0] + 1))
    return len(said - skipped)


def count(files: Iterable[str]) -> int:
    return sum(lines_of((ROOT / file).read_text(), file.endswith(".py")) for file in files)


def lines_of_function(file: str, name: str) -> int:
    """A Python function's, its signature included. Raises ValueError if there is none."""
    text = (ROOT / file).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return lines_of(ast.get_source_segment(text, node) or "", True)
    raise ValueError(f"{file}: no function {name}")


def own_files() -> list[str]:
    """Those of operators, their Python faces included, and those of the network."""
    faces = [f"dynroute/ops/{op}.py" for op in OWN]
    return [
        *faces,
        "dynroute/ops/reference.py",
        *NETWORK,
        *(f for of in OWN.values() for files in of.values() for f in files),
    ]


def shared_files() -> dict[str, list[str]]:
    """Each kind's, the folders spelled out."""
    named = {*own_files(), *(f for files in SHARED.values() for f in files if not f.endswith("/"))}
    return {
        kind: [file for entry in entries for file in (_rest(entry, named) if entry.endswith("/") else [entry])]
        for kind, entries in SHARED.items()
    }


def _rest(folder: str, named: set[str]) -> list[str]:
    here = (path for path in sorted((ROOT / folder).iterdir()) if path.suffix in SUFFIXES)
    return [file for path in here if (file := str(path.relative_to(ROOT))) not in named]


def table() -> str:
    """The page's two tables, in Markdown."""
    rows = [
        "| operator | reference | Python face | CPU | CUDA | Triton |",
        "|---|---|---|---|---|---|",
    ]
    for op, of in OWN.items():
        cells = [lines_of_function("dynroute/ops/reference.py", op), count([f"dynroute/ops/{op}.py"])]
        cells += [count(of[backend]) for backend in BACKENDS]
        rows.append(f"| `{op}` | " + " | ".join(str(cell) if cell else "-" for cell in cells) + " |")
    rows += ["", "| shared | lines | files |", "|---|---|---|"]
    for kind, files in shared_files().items():
        rows.append(f"| {kind} | {count(files)} | {len(files)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.operator_lines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    made = table()
    if not args.write:
        print(made)
        return
    before, found, rest = PAGE.read_text().partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not found or not ends:
        parser.error(f"{PAGE}: wanted the lines {BEGIN} and {END}")
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}")
    print(PAGE)


if __name__ == "__main__":
    main()
