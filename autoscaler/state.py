"""What the policy remembers of one model between two calls: immutable, bounded (under 64 KiB), and cheap to lose.

A fresh state knows nothing and therefore shrinks nothing: until a full window is seen it holds what it finds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from autoscaler import window
from autoscaler.behavior import History
from autoscaler.types import Sample, Supply

_SILENCE_GAP_S = 2.0
"""Unreported seconds that do not break a silence: a report that comes a little late."""


@dataclass(frozen=True, slots=True)
class State:
    """Memory of one model; times on the caller's clock."""

    started: float
    wanted: int | None = None
    """The last recommendation; None before the first."""
    spans: window.Spans = ()
    highs: History = ()
    """Past wants as the window down sees them (`behavior.remember_high`)."""
    lows: History = ()
    events: History = ()
    """Changes of the recommendation, signed."""
    judged_at: float | None = None
    """When wants were last recorded, that is, judged on data."""
    silent_from: float = 0.0
    """Since when it is known that no request arrived, waited or ran."""
    silent_until: float = 0.0
    strained_from: float | None = None
    """Since when requests queue although every wanted replica is ready; None while they do not."""
    carried: tuple[float, float] | None = None
    """Requests per second a replica served when last backlogged, and when that was."""
    ready: int = 0

    @classmethod
    def initial(cls, now: float) -> Self:
        """Nothing seen yet: a new model, or a controller that has just started."""
        return cls(started=now, silent_from=now, silent_until=now)


def standing(state: State, supply: Supply, now: float) -> int:
    """The count that a change starts from.

    As in HPA it is the count last asked for, so that a replica on the move or one that found no room does not read as
    a wish. In the first window it is at least what is found running.
    """
    found = supply.ready + supply.starting
    if state.wanted is None:
        return found
    return max(state.wanted, found) if now - state.started < window.STABLE_S else state.wanted


def is_active(sample: Sample) -> bool:
    """Whether the sample shows any request."""
    return bool(sample.wake or sample.queued_now or sample.arrivals or sample.in_flight or sample.queued)


def observe(state: State, supply: Supply, sample: Sample, current: int, now: float) -> State:
    """The state with one sample more; decides nothing."""
    silent_from, silent_until = state.silent_from, state.silent_until
    if is_active(sample) or supply.ready > state.ready:
        silent_from = silent_until = now
    elif sample.arrivals is not None and sample.in_flight is not None and sample.queued is not None:
        begin = now - max(0.0, sample.dt)
        if begin > silent_until + _SILENCE_GAP_S:
            silent_from = begin
        silent_until = now
    strained_from = state.strained_from
    if supply.starting or not 0 < current <= supply.ready or (sample.queued is not None and sample.queued < 1.0):
        strained_from = None
    elif sample.queued is not None and (strained_from is None or supply.ready > state.ready):
        strained_from = now
    return State(
        started=state.started,
        wanted=state.wanted,
        spans=window.add(state.spans, sample, supply, now),
        highs=state.highs,
        lows=state.lows,
        events=state.events,
        judged_at=state.judged_at,
        silent_from=silent_from,
        silent_until=silent_until,
        strained_from=strained_from,
        carried=state.carried,
        ready=supply.ready,
    )
