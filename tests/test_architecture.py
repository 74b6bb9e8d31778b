"""The house's order: no arrow back up and no circle, in dynroute/ by imports and in csrc/ by includes; short files.

Everything is read from the files' text, late imports inside functions too: an import that is late to hide a circle is a
circle all the same.
"""

from __future__ import annotations

import re

import pytest

from tests.support.sources import ROOT, Arrow, circle, imports_in, imports_of, includes_of, modules_of

# From the ground up: a folder or root module imports only what stands before it.
FLOORS = (
    "version", "provenance", "files", "space", "routes", "native", "cost", "ops", "models", "objective", "runtime",
    "planner", "data", "measure", "train", "report", "cli", "quickstart", "__main__",
)  # fmt: skip
# The same for folders of native code; folders side by side know nothing of one another.
NATIVE_FLOORS = {
    "contract": (),
    "bindings": ("contract",),
    "cpu/kernels": ("contract",),
    "cpu/planner": ("contract", "cpu/kernels"),
    "cpu/network": ("contract", "cpu/kernels", "cpu/planner"),
    "cpu/ops": ("contract", "bindings", "cpu/kernels", "cpu/planner", "cpu/network"),
    "cuda/kernels": ("contract",),
    "cuda/network": ("contract", "bindings", "cuda/kernels"),
    "cuda/ops": ("contract", "bindings", "cuda/kernels", "cuda/network"),
}
# Packages that folders of tests are named after.
NOT_OURS = ("benchmarks", "triton")
MOST_LINES = 400
# Files that are longer, each with its reason. One that is no longer too long has to leave.
LONG = {
    "tests/csrc/kernels_check.cpp": "one program, compiled once per instruction set: every kernel beside its reference",
}

IMPORTS = [arrow for arrow in imports_of("dynroute") if arrow.target.split(".")[0] == "dynroute"]
INCLUDES = includes_of("csrc")


def floor(module: str) -> str:
    """The folder or root module of dynroute that a module belongs to; the package itself is the roof."""
    return module.split(".")[1] if "." in module else "the roof"


def native_floor(file: str) -> str:
    """csrc/cpu and csrc/cuda have floors of their own."""
    parts = file.split("/")[:-1]
    return "/".join(parts[:2] if parts[:1] in (["cpu"], ["cuda"]) else parts[:1])


def listed(arrows: list[Arrow]) -> str:
    return "\n".join(["", *map(str, arrows)])


def arrows_up(arrows: list[Arrow]) -> list[Arrow]:
    """Those that lead to a higher floor than they begin on; the roof may look at everything."""
    below = {name: set(FLOORS[: place + 1]) for place, name in enumerate(FLOORS)}
    return [a for a in arrows if floor(a.source) != "the roof" and floor(a.target) not in below[floor(a.source)]]


def test_every_folder_has_a_floor() -> None:
    assert {floor(name) for name in modules_of("dynroute")} == {*FLOORS, "the roof"}
    there = {native_floor(str(path.relative_to(ROOT / "csrc"))) for path in (ROOT / "csrc").rglob("*.*")}
    assert there == set(NATIVE_FLOORS)


def test_no_import_leads_up() -> None:
    """Nor does anything inside import the package itself, as `import dynroute` or `from dynroute import Budget` do."""
    wrong = arrows_up(IMPORTS)
    assert not wrong, listed(wrong)


def test_no_circle_of_folders_or_modules() -> None:
    between = [(floor(a.source), floor(a.target)) for a in IMPORTS]
    assert circle((s, t) for s, t in between if s != t) is None
    assert circle((a.source, a.target) for a in IMPORTS if a.source.count(".") > 0) is None


@pytest.mark.parametrize(
    "source, forbidden",
    [
        ("ops", r"dynroute\.(models|runtime|cost)\b"),  # an operator knows tensors, no networks
        ("cost", r"dynroute\.(?!space\b|cost\b)"),  # a cell's cost comes in as a number
        ("report", r"dynroute\.measure(\.(timing|bench|tuning)\b|$)"),  # it draws what others measured
        ("(?!cli$|quickstart$|__main__$).*", r"dynroute\.cli\b"),  # the command line is nobody's library
    ],
)
def test_what_a_folder_must_not_know(source: str, forbidden: str) -> None:
    wrong = [a for a in IMPORTS if re.fullmatch(source, floor(a.source)) and re.match(forbidden, a.target)]
    assert not wrong, listed(wrong)


def test_no_include_leads_up() -> None:
    wrong = [a for a in INCLUDES if not (ROOT / "csrc" / a.target).is_file()]
    assert not wrong, "not found:" + listed(wrong)
    for a in INCLUDES:
        source, target = native_floor(a.source), native_floor(a.target)
        if target != source and target not in NATIVE_FLOORS[source]:
            wrong.append(a)
    assert not wrong, listed(wrong)


def test_no_circle_of_includes() -> None:
    between = [(native_floor(a.source), native_floor(a.target)) for a in INCLUDES]
    assert circle((s, t) for s, t in between if s != t) is None
    assert circle((a.source, a.target) for a in INCLUDES) is None


def test_only_bindings_know_torch() -> None:
    """The checks of tensors are for the operators of the CPU and for bind_*.cpp; kernels compile without torch."""
    wrong = [
        a
        for a in INCLUDES
        if native_floor(a.target) == "bindings"
        and native_floor(a.source) not in ("bindings", "cpu/ops")
        and not re.fullmatch(r"cuda/(network/bind_\w+\.cpp|ops/\w+\.(cpp|h))", a.source)
    ]
    assert not wrong, listed(wrong)
    torch = re.compile(r"#\s*include\s*<(torch|ATen|c10)/")
    for path in (ROOT / "csrc").rglob("*.*"):
        name = str(path.relative_to(ROOT / "csrc"))
        if native_floor(name) == "contract" or native_floor(name).endswith(("/kernels", "/planner")):
            assert not torch.search(path.read_text()), name


def test_tests_take_what_they_share_from_support() -> None:
    """A test imports the project, the benchmarks and tests.support; support imports no test. Nobody edits sys.path."""
    known = modules_of("tests")
    local = {name.rpartition(".")[2] for name in known}
    wrong = []
    for a in imports_of("tests"):
        of_tests = a.target.split(".")[0] == "tests"
        shared = a.target.startswith(("tests.support", "tests.goldens"))
        if (of_tests and not shared) or (a.target in local and a.target not in NOT_OURS):
            wrong.append(a)
    assert not wrong, listed(wrong)
    edits = re.compile(r"^\s*sys\.path\b", re.MULTILINE)
    assert [name for name, path in known.items() if edits.search(path.read_text())] == []


def test_files_are_short() -> None:
    long = {}
    for folder in ("dynroute", "csrc", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                lines = len(path.read_text().splitlines())
                if lines > MOST_LINES:
                    long[str(path.relative_to(ROOT))] = lines
    assert sorted(long) == sorted(LONG), f"over {MOST_LINES} lines: {long}; with a reason: {sorted(LONG)}"
    assert all(LONG.values())


def test_the_reader_sees_every_kind_of_import() -> None:
    """What the tests above would miss if it were read wrongly: late, relative, of the package itself."""
    text = (
        "import dynroute\nimport dynroute.ops as o\nfrom dynroute import ops, Budget\n"
        "def f():\n    from ..models import zoo\n    from . import budget\n    from .tables import Costs\n"
    )
    known = ("dynroute.ops", "dynroute.models.zoo", "dynroute.cost.budget", "dynroute.cost.tables")
    found = list(imports_in(text, "dynroute.cost.x", known))
    assert [(a.line, a.target) for a in sorted(found, key=lambda a: a.line)] == [
        (1, "dynroute"),
        (2, "dynroute.ops"),
        (3, "dynroute.ops"),
        (3, "dynroute"),
        (5, "dynroute.models.zoo"),
        (6, "dynroute.cost.budget"),
        (7, "dynroute.cost.tables"),
    ]
    assert list(imports_in("from . import a", "dynroute.cost", ("dynroute.cost.a",), is_package=True)) == [
        Arrow("dynroute.cost", "dynroute.cost.a", 1)
    ]
    assert [str(a) for a in arrows_up(found)] == [
        "dynroute.cost.x:1 -> dynroute", "dynroute.cost.x:2 -> dynroute.ops", "dynroute.cost.x:3 -> dynroute.ops",
        "dynroute.cost.x:3 -> dynroute", "dynroute.cost.x:5 -> dynroute.models.zoo",
    ]  # fmt: skip
    assert circle([("a", "b"), ("b", "c"), ("a", "c")]) is None
    assert circle([("a", "b"), ("b", "c"), ("c", "b")]) == ["b", "c", "b"]
