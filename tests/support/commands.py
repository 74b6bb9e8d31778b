"""Commands as a user runs them, in this process."""

from __future__ import annotations

import pytest

from dynroute.cli import main


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line of a command that must fail."""
    capsys.readouterr()
    assert main(list(args)) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dynroute: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    return lines[0].removeprefix("dynroute: error: ")
