"""What the project's own files import and include, read from their text: no library is loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Arrow(NamedTuple):
    """One file's use of another: names of modules or paths below the root, and where it is written."""

    source: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line} -> {self.target}"


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package of this checkout by its dotted name; a package is named without `__init__`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_in(text: str, name: str, known: Iterable[str], is_package: bool = False) -> Iterator[Arrow]:
    """All imports of the text of module `name`, those inside functions too.

    `from a import b` is an arrow to the module `a.b` if that is one of `known`, and to `a` if it is not.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Arrow(name, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Arrow(name, inner if inner in known else base, node.lineno)


def imports_of(package: str) -> list[Arrow]:
    """The imports of all modules of a package."""
    known = modules_of(package)
    arrows = (
        arrow
        for name, path in known.items()
        for arrow in imports_in(path.read_text(), name, known, path.name == "__init__.py")
    )
    return list(dict.fromkeys(arrows))  # one for each line, however many names it imports


def includes_of(folder: str) -> list[Arrow]:
    """All `#include "..."` below a folder, as paths from it; what is not found keeps the name it is included by."""
    arrows, root = [], ROOT / folder
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            named = re.match(r'\s*#\s*include\s+"([^"]+)"', line)
            if named:
                there = next((p for p in (path.parent / named[1], root / named[1]) if p.is_file()), None)
                target = str(there.resolve().relative_to(root.resolve())) if there else named[1]
                arrows.append(Arrow(str(path.relative_to(root)), target, number))
    return arrows


def circle(arrows: Iterable[tuple[str, str]]) -> list[str] | None:
    """A way along the arrows that ends where it began, or None if there is none."""
    targets: dict[str, list[str]] = {}
    for source, target in arrows:
        targets.setdefault(source, []).append(target)
    finished: set[str] = set()

    def walk(at: str, way: list[str]) -> list[str] | None:
        if at in way:
            return [*way[way.index(at) :], at]
        if at not in finished:
            for target in targets.get(at, ()):
                if found := walk(target, [*way, at]):
                    return found
            finished.add(at)
        return None

    for start in list(targets):
        if found := walk(start, []):
            return found
    return None
