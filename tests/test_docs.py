"""What the documentation says of files, code, numbers and pictures is so: links, quotes, launches, lines, drawings."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import operator_lines
from benchmarks.tiles import sizes
from benchmarks.tiles.__main__ import DRAWINGS, FOLDER
from dynroute.native import library, planner
from dynroute.runtime.cuda.launch_list import read_launches
from tests.support import cases
from tests.support.cuda.devices import A100
from tests.support.cuda.trained import both_directions
from tests.support.sources import ROOT
from tests.support.trees import to

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPERATORS = sorted(FOLDER.glob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
QUOTE = re.compile(r"^<!-- source: (\S+) -->\n```\w*\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"`((?:csrc|dynroute|tests|benchmarks|docs|tools)/[\w./]*|CMakeLists\.txt)`")
OPEN = torch.tensor([True, False])


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(text: str) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links(page: Path) -> None:
    """To files that are there, and to headings that they have."""
    wrong = []
    for link in LINK.findall(page.read_text()):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target.read_text())):
            wrong.append(link)
    assert not wrong


@pytest.mark.parametrize("page", OPERATORS, ids=named)
def test_files_of_operators(page: Path) -> None:
    """Every path that a page of an operator names is there."""
    found = FILE.findall(page.read_text())
    assert found and [file for file in found if not (ROOT / file).exists()] == []


def source_of(where: str) -> str:
    """The text of FILE, or of a function's body of it, FILE:NAME."""
    file, _, name = where.partition(":")
    text = (ROOT / file).read_text()
    if not name:
        return text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return "\n".join(text.splitlines()[node.body[0].lineno - 1 : node.end_lineno])
    raise ValueError(f"{where}: there is no such function")


def is_quoted(quote: str, text: str) -> bool:
    """Whether these lines follow each other in the text, all of them indented alike."""
    wanted, lines = textwrap.dedent(quote).splitlines(), text.splitlines()
    return any(
        textwrap.dedent("\n".join(lines[i : i + len(wanted)])).splitlines() == wanted
        for i in range(len(lines) - len(wanted) + 1)
    )


@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- source: " in page.read_text()], ids=named)
def test_quotes(page: Path) -> None:
    """A block of code that names its source is what stands there."""
    text = page.read_text()
    quotes = QUOTE.findall(text)
    assert len(quotes) == text.count("<!-- source: ")
    for where, quote in quotes:
        assert is_quoted(quote, source_of(where)), f"{where} says otherwise:\n{quote}"


def test_every_operator_is_quoted() -> None:
    quoted = {where for page in OPERATORS for where, _ in QUOTE.findall(page.read_text())}
    assert quoted == {f"dynroute/ops/reference.py:{op}" for op in operator_lines.OWN}


def test_what_no_quote_is() -> None:
    text = "def f():\n    a = 1\n    if a:\n        b = 2\n"
    assert is_quoted("    a = 1\n    if a:", text) and is_quoted("if a:\n    b = 2", text)
    assert not is_quoted("a = 1\nb = 2", text) and not is_quoted("if a:\nb = 2", text)


@pytest.mark.parametrize("name", DRAWINGS)
def test_pictures(name: str) -> None:
    """They are drawn from the code's numbers: after a change `python -m benchmarks.tiles` draws them anew."""
    picture = FOLDER / f"{name}.svg"
    assert picture.read_text() == DRAWINGS[name](), f"{picture} is of other numbers: python -m benchmarks.tiles {name}"
    assert any(f"({picture.name})" in page.read_text() for page in OPERATORS), f"no page shows {picture.name}"


def rows(text: str) -> dict[str, list[str]]:
    """The cells of tables' rows by the first one; heads are left out."""
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    heads = {i for i, row in enumerate(split[1:]) if set(row[0]) == {"-"}}
    return {row[0]: row[1:] for i, row in enumerate(split) if i not in heads and set(row[0]) != {"-"}}


def between(page: Path, begin: str, end: str) -> str:
    _, found, rest = page.read_text().partition(begin)
    inner, ends, _ = rest.partition(end)
    assert found and ends
    return inner


def test_lines_of_code() -> None:
    """About as many as the page says: a change of some lines needs no other page; a new file or operator does."""
    said = rows(between(operator_lines.PAGE, operator_lines.BEGIN, operator_lines.END))
    now = rows(operator_lines.table())
    advice = "python -m benchmarks.operator_lines --write"
    assert said.keys() == now.keys(), advice
    for name, cells in said.items():
        for cell, actual in zip(cells, now[name], strict=True):
            assert (cell == "-") == (actual == "-"), f"{name}: {advice}"
            if cell != "-":
                assert abs(int(cell) - int(actual)) <= max(20, int(actual) // 4), (
                    f"{name}: {actual}, not {cell}: {advice}"
                )


def test_every_file_counts_once() -> None:
    counted = [*operator_lines.own_files(), *(f for files in operator_lines.shared_files().values() for f in files)]
    assert len(counted) == len(set(counted)), sorted(file for file in counted if counted.count(file) > 1)
    there = {
        str(path.relative_to(ROOT))
        for folder in operator_lines.FOLDERS
        for path in (ROOT / folder).iterdir()
        if path.suffix in operator_lines.SUFFIXES
    }
    assert set(counted) == there, set(counted) ^ there


def test_what_a_line_is() -> None:
    python = (
        '"""What it is.\n\nMore."""\n\nx = """a\nb"""  # why\n# that\n'
        'def f():\n    """Says."""\n    return (\n        x\n    )\n'
    )
    assert operator_lines.lines_of(python, True) == 6
    assert operator_lines.lines_of("// a\nint x;  // b\n\n/* c\n d */\n}\n", False) == 2


def call_all(call: Callable[..., Any]) -> None:
    """Calls each operator in both directions by `call(op, *arguments)`."""
    n, c, h, w = 2, 64, 8, 16
    call("sepconv", *cases.sepconv(n, c, h, w), OPEN, 1, True, False)
    call("transform", *cases.transform(n, c, h, w, 2 * c), OPEN, 2)
    call("gate", *cases.gate(n, c, h, w), "tanh", False, OPEN)
    call("route", *cases.route(n))
    call("aggregate", *cases.aggregate(n, c, h, w))
    call("aggregate_backward", cases.normal(n, c, h, w), *cases.aggregate(n, c, h, w), [True] * 4)
    call("upsampled_cross_entropy", *cases.upsampled_cross_entropy(n, 19, h, w), 4, None, 255, True)
    both_directions("sepconv_train", cases.sepconv_train(n, c, h, w), (OPEN, 1, True, True, False, ""), call)
    both_directions("transform_train", cases.transform_train(n, c, h, w, 2 * c), (OPEN, 2, True, False, ""), call)
    both_directions("node_train", cases.node_train(3, c, h, w), (None, 0.0, True, False, ""), call)
    both_directions("gate_train", cases.gate_train(n, c, h, w), ("tanh", [0, 1, 2], False, False, ""), call)


def said_of_launches(column: int) -> dict[str, int]:
    said = rows(between(operator_lines.PAGE, "<!-- launches -->", "<!-- /launches -->"))
    return {name.strip("`"): int(cells[column]) for name, cells in said.items()}


@pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
def test_launches_on_cuda() -> None:
    found = {}

    def call(op: str, *args: Any) -> Any:
        outs, _, launches = getattr(torch.ops.dynroute, f"cuda_{op}_call")(*args, [*A100])
        found[op] = len(read_launches(launches))
        return tuple(outs)

    call_all(call)
    assert found == said_of_launches(0)


@pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
def test_the_pictures_shared_memory_on_cuda() -> None:
    """What they add up is what the launches ask for, of maps of 64 x 128 in float16."""
    shared = {}

    def call(op: str, *args: Any) -> Any:
        halves = [arg.half() if isinstance(arg, torch.Tensor) and arg.dim() == 4 else arg for arg in args]
        given = halves if op.endswith(("_train", "_backward")) else to(args, torch.float16)
        outs, _, launches = getattr(torch.ops.dynroute, f"cuda_{op}_call")(*given, [*A100])
        shared.update({launch.kernel: launch.shared for launch in read_launches(launches)})
        return tuple(outs)

    n, c, h, w = sizes.N, sizes.C, sizes.H, sizes.W
    call("sepconv", *cases.sepconv(n, c, h, w), OPEN, 1, True, False)
    call("transform", *cases.transform(n, c, h, w, 2 * c), OPEN, 2)
    call("gate", *cases.gate(n, c, h, w), "tanh", False, OPEN)
    x, *weights = cases.sepconv_train(n, c, h, w)
    out, *kept = call("sepconv_train", x, *weights, None, 1, False, False, False, "", 1e-5, False)
    given = x, *weights[:4], *kept, None, 1, False, False, False, "", False, [True] * 3
    call("sepconv_train_backward", out, *given)
    a, halo = sizes.a_bytes(64, c), sizes.halo_bytes()
    room = max(halo, sizes.ring_bytes(64)) + sizes.TRAIN_TOTALS
    wanted = {
        "sepconv": a + halo + c * c * sizes.HALF, "transform": a + sizes.ring_bytes(64),
        "train_forward": a + room, "train_product": a + sizes.ring_bytes(64) + sizes.TRAIN_TOTALS,
        "train_outer": 2 * a + halo, "train_depthwise": sizes.train_depthwise_bytes(),
    }  # fmt: skip
    assert {kernel: shared[kernel] for kernel in wanted} == wanted
    head, sums = sizes.constant("cuda/kernels/aggregate_route.h", "kAggregateHead"), 5 * (c // 2) * sizes.FLOAT
    assert shared["gate"] == head + a + sums + sizes.gate_ring_bytes()


@pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))
def test_the_picture_of_the_loss() -> None:
    """Its tasks, as the call cuts them."""
    n, k, h, w, factor = 1, 19, 64, 96, 4
    tile, rows_of_task, columns, low = sizes.loss_tiling(n, w, h, factor)
    logits, labels = cases.upsampled_cross_entropy(n, k, h, w, factor)
    *_, launches = torch.ops.dynroute.cuda_upsampled_cross_entropy_call(
        logits, labels, factor, None, 255, True, [*A100]
    )
    launch = read_launches(launches)[-1]
    tasks = n * sizes.ceil_div(w, tile) * sizes.ceil_div(h, rows_of_task)
    floats = 2 * factor + 2 * sizes.GEMM_THREADS * k + 2 * low * k
    assert launch.blocks == tasks and launch.shared == sizes.FLOAT * floats and columns == factor * (low - 1)


@pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not()))
def test_the_pictures_plan_on_the_cpu() -> None:
    """What they say follows from the caches is what the planner makes of this machine's."""
    machine, plan = planner.machine(), planner.plan(2, sizes.C, sizes.C, sizes.H, sizes.W)
    assert plan.fused and plan.step_rows == min(sizes.step_rows(2, machine["l2_bytes"]), plan.band_rows)
    strip = sizes.constant("cpu/planner/planner.cpp", "kStripColumns")
    fits = 3 * (strip + 2) * sizes.C * sizes.FLOAT <= machine["l1_bytes"] // 2
    assert plan.strip == (strip if fits else sizes.W)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_launches_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, and run by nobody."""
    from dynroute.ops.triton import launch, operators

    found: dict[str, int] = {}
    here = ""

    class Recorder:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            found[here] += 1
            return lambda *args, **options: None

    def call(op: str, *args: Any) -> Any:
        nonlocal here
        here, found[op] = op, 0
        return getattr(getattr(torch.ops, operators.NAMESPACE), op)(*args)

    monkeypatch.setattr(launch, "elsewhere", lambda kernel: Recorder())
    call_all(call)
    assert found == said_of_launches(1)


def test_tests_that_documents_name_are_there() -> None:
    named = {
        (file, name)
        for page in (ROOT / "docs").rglob("*.md")
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    }
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if not (ROOT / file).is_file() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert named and not missing, missing
