"""What the library says of itself (csrc/contract/describe.cpp) is what Python holds to be true, or it is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import dynroute
from dynroute.native import contract, library
from dynroute.native.contract import WeightField, differences, read_contract
from dynroute.space import wiring
from dynroute.space.wiring import build_space, padded_size

pytestmark = pytest.mark.skipif(library.why_not_loaded() is not None, reason=str(library.why_not_loaded()))

KEYS = (
    "version", "scales", "paths", "published_order", "activations", "threshold", "node_parts", "sample_parts", "config",
    "weight_fields", "table", "path_exists", "smallest_sides", "side_multiple", "stem_sides",
)  # fmt: skip
LAYERS, SIDES = 16, (512, 1024)  # the example that tables and sizes are described by


@pytest.fixture
def described() -> dict[str, Any]:
    return read_contract()


def changed(value: Any) -> Any:
    """Another value of the same kind: in a list or table only the last entry differs."""
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    if isinstance(value, list):
        return [*value[:-1], changed(value[-1])]
    if isinstance(value, dict):
        last = list(value)[-1]
        return {**value, last: changed(value[last])}
    return value + 1


def test_library_and_python_agree(described: dict[str, Any]) -> None:
    assert differences(described) == []
    assert tuple(described) == KEYS


@pytest.mark.parametrize("key", KEYS)
def test_a_change_is_one_line_that_names_it(key: str, described: dict[str, Any]) -> None:
    other = copy.deepcopy(described)
    other[key] = changed(described[key])
    lines = differences(other)
    assert len(lines) == 1 and "\n" not in lines[0]
    assert key in lines[0] and str(other[key]) in lines[0] and str(described[key]) in lines[0]
    del other[key]
    lines = differences(other)
    assert len(lines) == 1 and key in lines[0]


def test_something_new_is_a_difference_too(described: dict[str, Any]) -> None:
    lines = differences({**described, "colour": "blue"})
    assert len(lines) == 1 and "colour" in lines[0]


def test_names_come_in_the_same_order(described: dict[str, Any]) -> None:
    assert described["scales"] == wiring.SCALES
    assert tuple(described["paths"]) == wiring.PATH_NAMES
    assert tuple(described["activations"]) == contract.ACTIVATIONS
    assert tuple(described["node_parts"]) == contract.NODE_PARTS == wiring.PART_NAMES
    assert tuple(described["sample_parts"]) == contract.SAMPLE_PARTS
    assert tuple(described["config"]) == contract.ConfigNumbers._fields
    assert described["threshold"] == wiring.CLOSED_BELOW


def test_gates_come_in_the_order_of_published_checkpoints(described: dict[str, Any]) -> None:
    for row in build_space(LAYERS):
        for node in row:
            order = [wiring.PATH_NAMES[path] for path in node.published_order]
            assert order == [name for name in described["published_order"] if name in order]
            assert set(order) == {name for name, there in zip(wiring.PATH_NAMES, node.paths) if there}


def test_both_have_the_same_paths(described: dict[str, Any]) -> None:
    exists = [[False] * 3] * (4 * (LAYERS + 1))
    for row in build_space(LAYERS):
        for node in row:
            exists[4 * node.row + node.scale] = list(node.paths)
    assert described["path_exists"] == "".join(str(int(there)) for paths in exists for there in paths)


def test_weight_fields_have_one_place_each(described: dict[str, Any]) -> None:
    assert described["weight_fields"] == {name.lower(): int(at) for name, at in WeightField.__members__.items()}
    assert WeightField.DEPTHWISE < WeightField.POINTWISE < WeightField.SHIFT < WeightField.STAGE_FIELDS
    assert WeightField.CELL_STAGES + 3 * WeightField.STAGE_FIELDS <= WeightField.UP_CONV  # up to three stages
    convolutions = (WeightField.UP_CONV, WeightField.DOWN_CONV, WeightField.GATE_CONV, WeightField.GATE_FC)
    ends = (*convolutions[1:], WeightField.TABLE_FIELDS)
    assert all(end - at == 2 for at, end in zip(convolutions, ends))  # each with its shift
    assert WeightField.STEM_STAGES - WeightField.STEM_CONV == 2


def test_rows_of_the_weight_table_follow_one_another(described: dict[str, Any]) -> None:
    nodes = [contract.node_row(row, scale) for row in range(LAYERS + 1) for scale in range(wiring.SCALES)]
    merges = [contract.merge_row(LAYERS, scale) for scale in range(wiring.SCALES)]
    rows = [*nodes, contract.stem_row(LAYERS), *merges, contract.predictor_row(LAYERS)]
    assert rows == list(range(contract.table_rows(LAYERS)))
    table = {"stem": contract.stem_row(LAYERS), "merge": merges[0], "predictor": rows[-1], "rows": len(rows)}
    assert described["table"] == table


def test_sizes_are_those_of_the_model(described: dict[str, Any]) -> None:
    assert described["smallest_sides"] == [padded_size(1, 1, small_gate)[0] for small_gate in (False, True)]
    assert described["side_multiple"] == padded_size(257, 1, False)[0] - 256
    first = dynroute.create_model("dynamic_tiny").stem.conv.eval()
    with torch.no_grad():
        assert described["stem_sides"] == list(first(torch.zeros(1, 3, *SIDES)).shape[2:])


def test_a_library_of_another_version_is_refused_in_one_line(described: dict[str, Any]) -> None:
    assert library._why_not_ours(described) is None
    line = library._why_not_ours({**described, "version": "9.8.7"})
    assert line is not None and "\n" not in line
    assert "is of version 9.8.7" in line and f"dynroute {dynroute.__version__}" in line and "build it again" in line
    assert str(library.LIBRARY) in line
    assert library._why_not_ours({}) is not None  # so old that it says nothing of itself


def test_a_library_of_another_contract_is_refused_in_one_line(described: dict[str, Any]) -> None:
    line = library._why_not_ours({**described, "side_multiple": 64})
    assert line is not None and "\n" not in line and "side_multiple" in line and "build it again" in line
