"""How long a replica takes to become ready, learned from the counts alone: who starts, and who has become ready.

Starts are taken to end in the order they began. Where the hall knows better (`Supply.expected_ready_s`), it says so.
"""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN_S = 30.0
"""Before any start was seen: between the median (23 s) and the 95th percentile (45 s) of model servers."""
LONGEST_S = 300.0
_WEIGHT = 0.25
_MOST = 64


class Starts(NamedTuple):
    """What is remembered of starts."""

    pending: tuple[float, ...] = ()
    """When those under way began, oldest first."""
    ready: int = 0
    mean_s: float | None = None
    deviation_s: float = 0.0


def observe(starts: Starts, ready: int, starting: int, now: float) -> Starts:
    """With the counts of now."""
    pending, before, mean, deviation = starts
    if starting == len(pending) and ready <= before:
        return starts if ready == before else starts._replace(ready=ready)
    done = min(max(0, ready - before), len(pending))
    for begun in pending[:done]:
        took = now - begun
        if mean is None:
            mean = took
        else:
            deviation += _WEIGHT * (abs(took - mean) - deviation)
            mean += _WEIGHT * (took - mean)
    pending = pending[done:]
    more = starting - len(pending)
    pending = (*pending, *((now,) * more)) if more > 0 else pending[: len(pending) + more]
    return Starts(pending[-_MOST:], ready, mean, deviation)


def expected_s(starts: Starts, told: float | None) -> float:
    """Time to ready to plan with: a deviation above the mean; what the hall tells comes first."""
    if told is not None:
        return min(max(0.0, told), LONGEST_S)
    if starts.mean_s is None:
        return UNKNOWN_S
    return min(starts.mean_s, LONGEST_S) + min(starts.deviation_s, LONGEST_S)
