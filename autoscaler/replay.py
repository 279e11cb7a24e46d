"""A trace through the code that runs in the loop, on virtual time, or through what others do; figures, series, a plot.

The workload is drawn and simulated by simulate.py. `text_plot` draws load, replicas and violations for a terminal.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from autoscaler.baselines import Hpa, Kpa, Ray, Threshold
from autoscaler.oracle import reference
from autoscaler.policy import recommend
from autoscaler.simulate import Outcome, Scaler, Starts, View, Workload, draw, simulate
from autoscaler.state import State
from autoscaler.types import Recommendation, ScalingPolicy

if TYPE_CHECKING:
    from numpy.random import Generator

PolicyName = Literal["ours", "hpa", "kpa", "ray", "tpa", "oracle"]
_SHARE = 0.7
"""Of a replica's capacity (Ray: 0.5, its default), where another policy needs a target."""


class Ours:
    """`recommend`, called every second. `last` is the latest recommendation."""

    def __init__(
        self,
        policy: ScalingPolicy,
        expected_ready_s: float | None = None,
        phase: float = 0.0,
        began: datetime | None = None,
    ) -> None:
        self.policy, self._expected_ready_s, self._phase = policy, expected_ready_s, phase
        self._began = began
        self.state = State.initial(0.0, phase)
        self.last: Recommendation | None = None

    def __call__(self, view: View) -> int:
        supply = view.supply
        if self._expected_ready_s is not None or self.boost() != 1.0:
            supply = type(supply)(supply.ready, supply.starting, supply.draining, self._expected_ready_s, self.boost())
        at = None if self._began is None else self._began + timedelta(seconds=view.now)
        self.last, self.state = recommend(self.policy, supply, view.sample, self.state, view.now, at)
        return self.last.replicas

    def boost(self) -> float:
        """How many times its slice each replica has now."""
        return self.last.boost if self.last else 1.0

    def restart(self, now: float) -> None:
        """All is forgotten."""
        self.state, self.last = State.initial(now, self._phase), None


def replay(
    workload: Workload,
    policy: ScalingPolicy,
    which: PolicyName,
    start_s: float,
    rng: Generator,
    draws: Generator,
    began: datetime | None = None,
) -> Outcome:
    """The workload through one policy, starts taking `start_s` seconds. `draws` makes the requests: the same for all.

    Other policies than ours get targets at 70 percent of what a replica can do (Ray: half its slots); `oracle` knows
    all arrivals. Counts are held within the policy's min and max. `began` is when the trace began (with a zone), which
    a policy with schedules needs. Raises ValueError for a name that is none of these.
    """
    requests = draw(workload, draws)
    if which == "oracle":
        return reference(workload, requests, start_s, rng)
    scalers: dict[str, Scaler] = {
        "ours": Ours(policy, start_s, began=began),
        "hpa": Hpa(_SHARE * workload.capacity),
        "kpa": Kpa(_SHARE * workload.capacity, "rps"),
        "ray": Ray(0.5 * workload.slots),
        "tpa": Threshold(_SHARE * workload.capacity),
    }
    if which not in scalers:
        raise ValueError(f"policy {which!r} is not known; choose one of {', '.join(scalers)}, oracle")
    scaler = scalers[which]
    bins = max(1, round(60.0 / workload.trace.bin_s))
    rate = sum(workload.trace.counts[:bins]) / bins / workload.trace.bin_s
    first = min(max(math.ceil(rate / workload.capacity / _SHARE), policy.min_replicas), policy.max_replicas)
    return simulate(
        workload,
        requests,
        scaler,
        Starts(start_s),
        rng,
        first=first,
        least=min([policy.min_replicas, *(s.min_replicas for s in policy.schedules if s.min_replicas is not None)]),
        most=max([policy.max_replicas, *(s.max_replicas or s.min_replicas or 0 for s in policy.schedules)]),
        boost=scaler.boost if isinstance(scaler, Ours) else None,
    )


_BARS = " ▁▂▃▄▅▆▇█"


def text_plot(outcome: Outcome, width: int = 100) -> str:
    """Three rows over time: requests per second, replicas (all that cost) and violations, each with its greatest."""
    series = outcome.series
    columns = max(1, min(width, outcome.seconds))
    edges = [round(i * outcome.seconds / columns) for i in range(columns + 1)]

    def row(name: str, values: list[int]) -> str:
        means = [sum(values[a:b]) / max(1, b - a) for a, b in pairwise(edges)]
        most = max(means)
        marks = "".join(_BARS[math.ceil(mean / most * 8.0 - 1e-9) if most else 0] for mean in means)
        return f"{name:12} {marks} {most:.3g}"

    return "\n".join((row("requests/s", series.arrivals), row("replicas", series.total), row("late/s", series.late)))
