"""The native library is there, or whoever wants it is told why not."""

from __future__ import annotations

from pathlib import Path

from dynroute.native import library
from tests.support.processes import python


def test_the_native_library_is_built() -> None:
    assert library.why_not_loaded() is None


def test_another_library(tmp_path: Path) -> None:
    """It is loaded, or the import fails and says why: no silent use of the reference."""
    code = "import dynroute.native.library as native; print(native.LIBRARY, native.why_not_loaded())"
    missing, broken = tmp_path / "missing.so", tmp_path / "broken.so"
    broken.write_text("not a library")
    for file, reason in ((missing, "there is no file"), (broken, "does not load")):
        run = python("-c", code, DYNROUTE_LIBRARY=str(file))
        assert run.returncode != 0 and not run.stdout
        last = run.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: DYNROUTE_LIBRARY: ") and reason in last and str(file) in last
    if library.why_not_loaded() is None:
        copy = tmp_path / "copy.so"
        copy.write_bytes(library.LIBRARY.read_bytes())
        run = python("-c", code, DYNROUTE_LIBRARY=str(copy))
        assert run.stdout.split() == [str(copy), "None"], run.stderr
