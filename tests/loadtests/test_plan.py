from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests import plan


def test_the_load_takes_two_minutes_and_needs_one_three_five_two_and_one_replicas() -> None:
    planned = plan.steps(target_qps=20, max_replicas=6)
    assert [s.replicas for s in planned] == [1, 3, 5, 2, 1]
    assert planned[0].start == 0
    assert planned[-1].end == 120
    assert [s.rate for s in planned] == [12, 52, 92, 32, 12]


def test_no_step_asks_for_more_than_the_model_may_have() -> None:
    assert [s.replicas for s in plan.steps(target_qps=20, max_replicas=2)] == [1, 2, 2, 2, 1]


@given(st.floats(0.1, 1000), st.integers(1, 50))
def test_a_step_is_what_its_replicas_can_just_serve(target: float, most: int) -> None:
    for step in plan.steps(target, most):
        assert step.replicas == math.ceil(step.rate / target)
        # A rate off by a twentieth of what the replicas can do wants the same count still.
        off = step.replicas * target / 20
        assert math.ceil((step.rate - off) / target) == math.ceil((step.rate + off) / target) == step.replicas
        assert step.users * plan.user_rate(target) == pytest.approx(step.rate)


@pytest.mark.parametrize(("elapsed", "index"), [(0, 0), (23.9, 0), (24, 1), (119.9, 4), (120, None), (500, None)])
def test_each_moment_is_in_one_step(elapsed: float, index: int | None) -> None:
    assert plan.step_at(plan.steps(20, 5), elapsed) == index
