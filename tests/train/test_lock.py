"""One training at a time in a folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dynroute.train import ConfigError, loop, train
from dynroute.train.lock import locked
from tests.support.runs import small

HOLD = """
import sys, time
from pathlib import Path
from dynroute.train.lock import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(100)
"""


def held(folder: Path) -> subprocess.Popen[str]:
    """Another process, which has the folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "mine\n"
    return process


def test_another_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it lives the second training is refused, changing nothing; once it is dead its lock is taken over."""
    run = tmp_path / "run"
    process = held(run)
    try:
        before = {path: path.read_bytes() for path in run.iterdir()}
        for resume in (False, True):
            with pytest.raises(ConfigError, match=rf"process {process.pid} on {socket.gethostname()} trains in {run}"):
                train(small(run), resume=resume, quiet=True)
        assert {path: path.read_bytes() for path in run.iterdir()} == before
    finally:
        process.send_signal(signal.SIGKILL)
        # not waited for yet: a dead process that still has its number
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        train(small(run, "schedule.steps=2"), quiet=True)
        err = capsys.readouterr().err
        assert f"train: took over {run / 'lock.json'}: process {process.pid} on {socket.gethostname()} is dead" in err
        assert not (run / "lock.json").exists() and (run / "eval.json").is_file()
    finally:
        process.communicate()


def test_another_training_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun in the midst of one."""
    real, refused = loop.train_step, []

    def step(*arguments: Any, **options: Any) -> Any:
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on .* trains in") as error:
            train(small(tmp_path / "run"), quiet=True)
        refused.append(str(error.value))
        return real(*arguments, **options)

    monkeypatch.setattr(loop, "train_step", step)
    train(small(tmp_path / "run", "schedule.steps=2"), quiet=True)
    assert len(refused) == 2 and "wait for it, or choose another folder" in refused[0]


def test_many_at_once(tmp_path: Path) -> None:
    """Over a stale lock, exactly one gets the folder."""
    stale = {"pid": 2**22 + 1, "host": socket.gethostname(), "started": "long ago"}
    (tmp_path / "lock.json").write_text(json.dumps(stale))
    begin, end, got = threading.Barrier(16), threading.Barrier(16), []

    def take() -> None:
        begin.wait()
        try:
            with locked(tmp_path) as lines:
                got.append(lines)
                end.wait()
        except ConfigError:
            end.wait()

    threads = [threading.Thread(target=take) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(got) == 1 and "is dead" in got[0][0]
    assert not (tmp_path / "lock.json").exists()


def test_locks_of_others(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"

    def owner(**changes: Any) -> None:
        path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": None, **changes}))

    owner(host="elsewhere")
    with (
        pytest.raises(ConfigError, match=rf"on elsewhere trains in {tmp_path}; if it is gone, delete {path}"),
        locked(tmp_path),
    ):
        pass
    owner(started="before this machine was started anew")  # its number is another process's now
    with locked(tmp_path) as lines:
        assert "is dead" in lines[0]
    for text in ("", "{", "[]", '{"pid": "x"}'):
        path.write_text(text)
        with locked(tmp_path) as lines:
            assert lines == [f"took over {path}, which names no process"]
    with locked(tmp_path) as lines:
        assert lines == []
        owner(host="elsewhere")  # somebody deleted ours, and took the folder
    assert path.exists()


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run.folder: wanted a folder, .*file is a file"), locked(tmp_path / "file"):
        pass
    with locked(tmp_path / "made"):
        pass
    assert not (tmp_path / "made").exists()
