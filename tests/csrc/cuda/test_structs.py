"""tests/support/cuda/structs.py says the same as csrc/cuda/kernels/params.h: sizes and offsets of every field, by the
compiler."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dynroute.runtime.cuda.emulator import INCLUDE
from dynroute.runtime.cuda.listed import Io
from tests.support.cuda import structs

HEADER = INCLUDE / "cuda" / "kernels" / "params.h"
STRUCTS = {name: s for name, s in vars(structs).items() if isinstance(s, type) and issubclass(s, ctypes.Structure)}
STRUCTS = {name: s for name, s in STRUCTS.items() if s not in (ctypes.Structure, structs.Struct)}
CPP_NAMES = {"from_place": "from", "to_place": "to"}  # `from` is a word of Python's


def test_every_struct_of_the_kernels_is_mirrored() -> None:
    named = set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE))
    assert named - {"LaunchShape", "DeviceLimits"} == set(STRUCTS) - {"MapShape"}


def test_a_calls_inputs_and_outputs_are_in_their_order() -> None:
    assert [name for name, _ in structs.Io._fields_] == list(Io._fields)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ was not found")
def test_sizes_and_offsets(tmp_path: Path) -> None:
    lines, wanted = [], []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        wanted.append(f"{name} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            place, size = getattr(struct, field).offset, getattr(struct, field).size
            member = f"{name}::{CPP_NAMES.get(field, field)}"
            lines.append(
                f'printf("{name}.{field} %zu %zu\\n", offsetof({member.replace("::", ", ")}), sizeof({member}));'
            )
            wanted.append(f"{name}.{field} {place} {size}")
    source = tmp_path / "sizes.cpp"
    source.write_text(
        f'#include <cstddef>\n#include <cstdio>\n#include "{HEADER}"\nusing namespace dynroute;\n'
        f"using namespace dynroute::cuda;\n"
        f"int main() {{\n{chr(10).join(lines)}\n}}\n"
    )
    subprocess.run(["g++", "-std=c++17", f"-I{INCLUDE}", str(source), "-o", str(tmp_path / "sizes")], check=True)
    printed = subprocess.run([str(tmp_path / "sizes")], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == wanted
