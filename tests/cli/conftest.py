"""What every test of the command line may ask for: one tiny run, trained once, and a data set in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.runs import make_folder_data, train_tiny


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of ten steps."""
    return train_tiny(tmp_path_factory.getbasetemp() / "tiny_run")


@pytest.fixture
def folder_data(tmp_path: Path) -> Path:
    """Three images of 64x48 with labels 0..6."""
    return make_folder_data(tmp_path / "data")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices of shards would stay in the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
