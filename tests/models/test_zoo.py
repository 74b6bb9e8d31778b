"""Models by name and by configuration, and what is said of wrong ones."""

from __future__ import annotations

import pytest

import dynroute


@pytest.mark.parametrize(
    "fields", [{"channels": 12}, {"gate": "relu"}, {"num_classes": 0}, {"cell": "conv"}, {"depth": 3}]
)
def test_configuration_errors(fields: dict) -> None:
    with pytest.raises(ValueError, match="wanted"):
        dynroute.create_model("dynamic_tiny", **fields)


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="dynamic_raw_l16"):
        dynroute.create_model("resnet50")
    assert {"dynamic_raw_l16", "dynamic_a_l16", "dynamic_b_l16", "dynamic_c_l16", "dynamic_raw_l33", "fix_l16"} <= set(
        dynroute.list_models()
    )
