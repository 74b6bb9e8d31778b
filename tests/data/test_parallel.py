"""Many files at once: in order, errors too, and no more ahead than fits."""

from __future__ import annotations

import threading
import time

import pytest

from dynroute.data.parallel import in_threads


def test_results_are_in_order() -> None:
    def late(k: int) -> int:
        time.sleep(0.001 * (k % 5))
        return k * k

    assert list(in_threads(late, list(range(40)), "squares")) == [k * k for k in range(40)]
    assert list(in_threads(late, [], "nothing")) == []


def test_the_first_error_in_order_is_raised() -> None:
    def breaks(k: int) -> int:
        if k >= 3:
            time.sleep(0.05 if k == 3 else 0.0)
            raise ValueError(f"item {k}")
        return k

    taken = []
    with pytest.raises(ValueError, match="item 3"):
        for value in in_threads(breaks, list(range(10)), "items"):
            taken.append(value)
    assert taken == [0, 1, 2]


def test_what_is_read_does_not_pile_up() -> None:
    begun = 0
    lock = threading.Lock()

    def count(k: int) -> int:
        nonlocal begun
        with lock:
            begun += 1
        return k

    items = in_threads(count, list(range(10_000)), "items")
    assert next(items) == 0
    items.close()
    assert begun <= 8 * 9 + 8 and threading.active_count() < 60


def test_the_bar_shows_after_two_seconds_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(in_threads(str, list(range(20)), "quick"))) == 20
    assert "quick" not in capsys.readouterr().err
    assert (
        len(list(in_threads(lambda k: time.sleep(0.3 if k == 19 else 2.1 if k == 0 else 0.0), range(20), "slow"))) == 20
    )
    assert "slow" in capsys.readouterr().err
