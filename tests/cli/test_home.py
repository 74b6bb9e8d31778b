"""`~` at the beginning of a path is the user's home, in every command and in a configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dynroute.cli import main
from dynroute.train import load_config


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own, and the folder that it works in; nothing may be called `~` there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_in_commands(tiny_run: Path, folder_data: Path, home: Path) -> None:
    shutil.copytree(tiny_run, home / "run")
    assert main(["segment", "~/run", "~/data/images/val", "--out=~/out", "--json=~/found.json"]) == 0
    assert len(list((home / "out").iterdir())) == 6 and (home / "found.json").is_file()
    assert main(["data", "check", "~/data", "--out=~/sheet.html"]) == 0
    assert (home / "sheet.html").is_file()
    assert main(["eval", "~/run", "--data", "~/data"]) == 0
    assert main(["flops", "~/run", "--size", "64x64", "--gates", "~/run"]) == 0
    assert not (home / "~").exists()


def test_in_a_configuration(home: Path) -> None:
    (home / "mine.yaml").write_text("data: {root: ~/data}\n")
    config = load_config(home / "mine.yaml", ["run.folder=~/run", "model.init=~/model"])
    assert config.data.root == str(home / "data")
    assert (config.run.folder, config.model.init) == (str(home / "run"), str(home / "model"))
