"""What tuning tries: different plans, none of them left in force."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dynroute import planner
from dynroute.measure.tuning import Candidate, candidates, cell_shapes, plan_of
from tests.support.networks import random_network
from tests.support.plans import HEIGHT, WIDTH, check

pytestmark = [
    pytest.mark.skipif(planner.why_not() is not None, reason=str(planner.why_not())),
    pytest.mark.usefixtures("no_tuning"),
]


def test_candidates_are_different_plans_and_leave_the_models_in_force() -> None:
    net = random_network(layers=5, channels=16)
    for s, shape in enumerate(cell_shapes(net.config, HEIGHT, WIDTH)):
        model = plan_of(shape, s, 1)
        found = candidates(shape, s, 1)
        assert found[0] == Candidate() and plan_of(shape, s, 1) == model
        plans = set()
        for candidate in found:
            candidate.put(shape)
            plan = plan_of(shape, s, 1)
            check(plan, shape)
            plans.add(replace(plan, milliseconds=0.0))
        assert len(plans) == len(found) <= 60
        planner.forget_tuning()
