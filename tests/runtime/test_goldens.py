"""The published implementation's results, reproduced by the runtime."""

from __future__ import annotations

import pytest

import dynroute
from tests.support.backends import BACKENDS
from tests.support.goldens import EVAL, check_eval, load


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", [c for c, _ in EVAL], ids=[i for _, i in EVAL])
def test_goldens(path, backend: str) -> None:
    _, golden, net, (images, _) = load(path)
    check_eval(dynroute.optimize(net, backend)(images), golden)
