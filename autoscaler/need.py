"""How many replicas a model needs by what a replica is known to carry and by what is coming.

    up      what the forecast rate needs when replicas asked for now would be ready: enough that few requests wait at
            the middle rate, and that most do not wait at the high one; at once what a rise that the forecast did not
            see needs; more, within bounds, where a backlog would outlast the replicas that are there or to come
    down    nothing below `up`, below what the present rate needs, or below what was forecast for times still to come

The waits come from staffing.py, the rates from forecast.py, the replica's capacity from capacity.py.
"""

from __future__ import annotations

import math

from autoscaler.capacity import Capacity
from autoscaler.forecast import NAMES, History, latest
from autoscaler.staffing import replicas_for
from autoscaler.types import Objective
from autoscaler.window import Estimate
from autoscaler.words import Words

WAIT_S = 1.0
"""The wait that few requests should exceed, where no objective is given."""
LATE = 0.05
"""Share that may, at the middle forecast."""
LATE_AT_HIGH = 0.2
"""Share that may, at the high one."""
DRAIN_S = 20.0
"""A backlog that outlasts the start of a replica is to be gone within this."""
MOST_CATCHING_UP = 1.5
"""Times the replicas that the expected rate needs, at most, to catch up with a backlog."""
SLOWED_DRAIN_S = 5.0
"""The same after replicas were found to have slowed: their queue is nobody's burst, it grows until more are there."""
REACTION_S = 3.0
"""From a change of the rate to a decision."""
SURPRISE_Z = 3.0
"""Standard deviations by which a rate exceeds the high forecast before it is believed instead."""
CERTAIN_Z = 2.25
"""Standard deviations that are taken off a rate that surprises, where its staffing comes on top."""
LIKELY_Z = 2.0
"""The same where it is divided by a target."""
_BOOST_STEP = 0.25
_EXPECTED = "%.1f to %.1f requests/s expected in %.0f s (mostly from %s)"
_SURPRISE = "%.1f requests/s, %.1f for sure, more than the %.1f expected,"


def standard(objective: Objective | None, service_s: float) -> tuple[float, float]:
    """The wait that may be exceeded, and by what share of requests.

    A latency objective leaves for waiting what a service, taken as exponential, leaves of it at that percentile.
    """
    if objective is None:
        return WAIT_S, LATE
    share = 1.0 - objective.percentile / 100.0
    return max(0.0, objective.latency_s - service_s * -math.log(share)), share


def need(
    capacity: Capacity,
    history: History,
    rate: Estimate,
    queued: float,
    ready: int,
    current: int,
    horizon_s: float,
    objective: Objective | None,
    max_boost: float,
    now: float,
    *,
    has_slowed: bool = False,
) -> tuple[float, float, float, Words]:
    """What the model needs now: fractional replicas up and down, requests per second planned for, and how they came
    about.

    Where slices may grow, growth covers what exceeds the middle forecast, and only what it cannot cover is staffed.
    """
    known, per_replica, slots, _ = capacity
    wait_s, late = (WAIT_S, LATE) if objective is None else standard(objective, slots / known)
    level, _, before = rate
    late_at_high = max(late, LATE_AT_HIGH)
    coming = latest(history)
    if coming is None:
        expected = middle = high = level
        words: Words = ("%.1f requests/s", level)
    else:
        _, middle, expected = coming
        words = (_EXPECTED, middle, expected, horizon_s, NAMES[history.best])
        high = expected if max_boost == 1.0 else max(middle, expected / max_boost)
    planned = expected
    staffed = replicas_for(middle, per_replica, slots, wait_s, late)
    staffed = replicas_for(high, per_replica, slots, wait_s, late_at_high, staffed)
    if level > expected and _is_surprise(rate, expected):
        # A few seconds may be a passing burst: only what is certain of the rise is planned for.
        planned = max(expected, certain(rate))
        words = (_SURPRISE, level, planned, expected)
        staffed = replicas_for(planned, per_replica, slots, wait_s, late_at_high, staffed)
    up: float = staffed
    if queued > max(1.0, 0.5 * level):
        usual = level if before is None else max(before, certain(rate))
        drain_s = SLOWED_DRAIN_S if has_slowed else DRAIN_S
        catching = min(
            _catch_up(per_replica, usual, queued, ready, current, horizon_s, drain_s),
            MOST_CATCHING_UP * min(usual, expected if coming is not None else usual) / per_replica + 1.0,
        )
        if catching > up:
            up, words = catching, ("%s and %.0f queued", words, queued)
    promised = expected
    for due, _, high in history.issued:
        if high > promised and due > now:
            promised = high
    # What was asked for last is staffed above.
    staying = max(level, promised) if promised > expected else level
    down = up
    if coming is None or staying > expected or max_boost > 1.0 or late > LATE_AT_HIGH:
        down = max(up, replicas_for(staying, per_replica, slots, wait_s, LATE_AT_HIGH, staffed))
    return up, down, planned, ("%s at %.3g known of a replica (%.3g for sure)", words, known, per_replica)


def _is_surprise(rate: Estimate, expected: float) -> bool:
    value, window, _ = rate
    return value - expected > SURPRISE_Z * math.sqrt(max(value, 0.3) / window)


def certain(rate: Estimate, z: float = CERTAIN_Z) -> float:
    """What the rate is at least, `z` standard deviations of its chance below what was measured."""
    return rate.value - z * math.sqrt(max(rate.value, 0.3) / rate.window)


def _catch_up(
    per_replica: float, rate: float, queued: float, ready: int, current: int, horizon_s: float, drain_s: float
) -> float:
    """Replicas that work a backlog off in time; 0 where those there or to come do."""
    remaining = horizon_s / 2.0 if current > ready else 0.0
    then = max(0.0, queued + (rate - ready * per_replica) * remaining)
    spare = current * per_replica - rate
    if spare > 0.0 and remaining + then / spare <= horizon_s + drain_s / 2.0:
        return 0.0
    return (rate + then / drain_s) / per_replica


def boost(
    capacity: Capacity, rate: Estimate, queued: float, ready: int, most: float, objective: Objective | None
) -> float:
    """How many times its slice each ready replica should have until more replicas are there; from 1 to `most`."""
    if most <= 1.0 or ready == 0:
        return 1.0
    wait_s, late = standard(objective, capacity.slots / capacity.rate)
    load = rate.value + queued / DRAIN_S * 4.0
    wanted = replicas_for(load, capacity.low, capacity.slots, wait_s, late) / ready
    return min(most, max(1.0, math.ceil(wanted / _BOOST_STEP - 1e-6) * _BOOST_STEP)) if wanted > 1.0 else 1.0
