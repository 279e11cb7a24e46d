"""A reference: the cheapest plan found that knows all arrivals beforehand and keeps violations within 1 percent.

A plan has what the coming requests need, by staffing.py, on average over a span, started in time. Spans and the
share that may wait are tried, and the cheapest run that keeps within the limit is taken. It is a reference, not a
bound.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from autoscaler.simulate import Outcome, Requests, Starts, View, Workload, simulate
from autoscaler.staffing import replicas_for

if TYPE_CHECKING:
    from numpy.random import Generator

_SHARES = (0.02, 0.06, 0.15, 0.3, 0.5, 0.7, 0.9)
_SPANS_S = (10, 30, 60)
_KEEPS_S = (10, 60)


def reference(
    workload: Workload,
    requests: Requests,
    start_s: float,
    rng: Generator,
    *,
    most_percent: float = 1.0,
    few: bool = False,
) -> Outcome:
    """The cheapest run found; where none keeps within the limit, the one with the fewest violations.

    `few` tries a sixth of the plans, those that are mostly the best.
    """
    import numpy as np

    seconds = round(workload.trace.seconds)
    at = np.asarray(requests.at)
    per_second = np.bincount(at.astype(int), weights=np.asarray(requests.service_s), minlength=seconds)[:seconds]
    ahead = round(start_s)
    runs: list[Outcome] = []
    for span, share, keep in product((30,) if few else _SPANS_S, _SHARES, (60,) if few else _KEEPS_S):
        sums = np.concatenate(([0.0], np.cumsum(per_second)))
        # Busy time a second on average, over the span that begins or the one that ends here, whichever is more.
        here = np.arange(seconds)
        after, before = np.minimum(here + span, seconds), np.maximum(here + 1 - span, 0)
        coming = (sums[after] - sums[here]) / (after - here)
        past = (sums[here + 1] - sums[before]) / (here + 1 - before)
        loads = np.maximum(coming, past)
        known: dict[float, int] = {}
        plan: list[int] = []
        for load in np.round(loads / workload.service_s, 2).tolist():
            if load not in known:
                known[load] = replicas_for(load, workload.capacity, workload.slots, workload.slo_s, share)
            plan.append(max(1, known[load]))
        padded = [*plan, *([plan[-1]] * (ahead + 1))]
        started = [max(padded[t : t + ahead + 1]) for t in range(seconds)]
        # A dip that is shorter than this is not worth a drain and a start.
        filled = [*([started[0]] * keep), *started]
        wanted = [
            max(started[t], min(max(filled[t : t + keep + 1]), max(started[t : t + keep + 1]))) for t in range(seconds)
        ]

        def follow(view: View, wanted: list[int] = wanted) -> int:
            return wanted[int(view.now)]

        outcome = simulate(workload, requests, follow, Starts(start_s), rng, first=max(plan[: ahead + 1]))
        runs.append(outcome)
    # Within the limit the cheapest; else the one nearest to it.
    return min(runs, key=lambda run: (max(most_percent, run.violation_share), run.cost))
