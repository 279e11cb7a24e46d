from __future__ import annotations

import numpy as np
import pytest

from autoscaler.simulate import Starts, Workload, draw
from autoscaler.together import simulate_together
from autoscaler.trace import Trace


def run(divider, quota=6, first=(3, 3), start_s=20.0):
    works = [Workload(name, Trace(60.0, (16.0 * 60.0,) * 10), 4, 0.5, 0.5, 1.0) for name in ("a", "b")]
    requests = [draw(work, np.random.default_rng(seed)) for seed, work in enumerate(works)]
    rng = np.random.default_rng(2)
    return simulate_together(works, requests, divider, Starts(start_s), rng, first=first, quota=quota)


def test_enough_for_both_keeps_nobody_waiting():
    for outcome in run(lambda views: [3, 3]):
        assert outcome.violation_share < 5.0
        assert outcome.cost == 3 * 600


def test_what_is_given_beyond_the_quota_is_not_started():
    a, b = run(lambda views: [8, 3])

    assert (a.peak, b.peak) == (3, 3)
    assert a.cold_starts == 0


def test_a_replica_that_drains_keeps_its_place_until_it_is_done():
    outcomes = run(lambda views: [4, 2] if views[0].now >= 60 else [3, 3])

    a, b = (outcome.series.total for outcome in outcomes)
    assert max(x + y for x, y in zip(a, b, strict=True)) == 6
    assert (a[-1], b[-1]) == (4, 2)
    assert outcomes[0].cold_starts == 1


def test_more_than_the_quota_at_the_beginning_is_refused():
    with pytest.raises(ValueError, match="7 replicas on a quota of 6"):
        run(lambda views: [3, 3], first=(4, 3))
