from __future__ import annotations

import numpy as np
import pytest

from autoscaler.baselines import Fixed
from autoscaler.simulate import Starts, Workload, draw, simulate
from autoscaler.staffing import late_share, replicas_for
from autoscaler.trace import Trace


@pytest.mark.parametrize(("rate", "service_s"), [(20.0, 2.0), (60.0, 0.4), (6.0, 8.0)])
def test_the_formula_agrees_with_the_simulator(rate, service_s):
    work = Workload("steady", Trace(60.0, (rate * 60.0,) * 120), 8, service_s, 1.0, 1.0)
    count = replicas_for(rate, work.capacity, 8, 1.0, 0.05)
    outcome = simulate(
        work,
        draw(work, np.random.default_rng(1)),
        Fixed(count),
        Starts(30.0),
        np.random.default_rng(2),
        first=count,
    )

    assert outcome.violation_share <= 8.0
    assert outcome.violation_share == pytest.approx(100.0 * late_share(rate, count, work.capacity, 8, 1.0), abs=3.0)


def test_one_replica_less_would_be_too_few():
    count = replicas_for(40.0, 4.0, 8, 1.0, 0.05)

    assert late_share(40.0, count, 4.0, 8, 1.0) <= 0.05 < late_share(40.0, count - 1, 4.0, 8, 1.0)


def test_nothing_to_do_needs_nobody():
    assert replicas_for(0.0, 4.0, 8, 1.0, 0.05) == 0
