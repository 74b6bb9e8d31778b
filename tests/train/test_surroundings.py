"""What surrounds a run: deterministic algorithms, and errors that become one line."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from dynroute.train import ConfigError, loop, train
from dynroute.train.surroundings import CUBLAS, deterministic, explained, interruptible
from tests.support.runs import small

GPU = torch.device("cuda")


def settings() -> tuple[bool, bool, bool, str | None]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get(CUBLAS),
    )


@pytest.mark.parametrize("before", [None, ":16:8", ":0:0"])
def test_set_and_put_back(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if before is None:
        monkeypatch.delenv(CUBLAS, raising=False)
    else:
        monkeypatch.setenv(CUBLAS, before)
    outside = settings()
    with pytest.raises(RuntimeError, match="inside"), deterministic(True, GPU):
        assert settings() == (True, False, False, ":16:8" if before == ":16:8" else ":4096:8")
        raise RuntimeError("inside")
    assert settings() == outside
    with deterministic(False, GPU):
        assert settings() == outside


def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CUBLAS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    wanted = r"run.deterministic: wanted CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment before CUDA is first used"
    with pytest.raises(ConfigError, match=wanted), deterministic(True, GPU):
        pass
    monkeypatch.setenv(CUBLAS, ":16:8")
    with deterministic(True, GPU):
        pass


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps are deterministic, and an operator of torch that is not so ends it with one line."""
    real, seen = loop.train_step, []

    def step(*arguments: object) -> object:
        seen.append(torch.are_deterministic_algorithms_enabled())
        if len(seen) == 3:
            raise RuntimeError("fold_cuda does not have a deterministic implementation, but you set 'torch.use_...'")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", step)
    train(small(tmp_path / "run", "run.deterministic=true", "schedule.steps=2"), quiet=True)
    assert seen == [True, True] and not torch.are_deterministic_algorithms_enabled()
    wanted = "^run.deterministic: fold_cuda does not have a deterministic implementation$"
    with pytest.raises(ConfigError, match=wanted):
        train(small(tmp_path / "other", "run.deterministic=true"), quiet=True)
    with pytest.raises(RuntimeError, match="something else"), explained("step 1"):
        raise RuntimeError("something else")


def test_signals(request: pytest.FixtureRequest) -> None:
    """SIGTERM asks, however often; so does the first Ctrl-C, and a second acts."""
    # what a shell starts in the background is told to ignore Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    with interruptible() as asked:
        assert not asked()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    with pytest.raises(KeyboardInterrupt), interruptible() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
