"""Which nodes exist, what feeds them, what leaves them."""

from __future__ import annotations

import pytest

import dynroute
from dynroute.space.wiring import build_space, path_exists


def test_wiring_of_the_growing_layers() -> None:
    rows = build_space(4)
    assert [len(r) for r in rows] == [1, 2, 3, 4, 4]
    assert rows[1][1].sources == (False, False, True)  # scale 1 appears: only from above
    assert rows[2][0].sources == (True, True, False)
    assert rows[2][1].sources == (False, True, True)  # scale 2 has nothing to send up yet
    assert rows[4][2].sources == (True, True, True)
    assert all(node.paths == (False, True, False) for node in rows[4])
    exists = path_exists(4)
    assert int(exists.sum()) == sum(sum(n.paths) for r in rows for n in r)


@pytest.mark.parametrize("layers", [3, 0, -1])
def test_fewer_than_four_layers_is_an_error(layers: int) -> None:
    with pytest.raises(ValueError, match="layers: wanted at least 4"):
        dynroute.create_model("dynamic_tiny", layers=layers)
