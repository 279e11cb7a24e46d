"""What the policy remembers of one model between two calls: immutable, bounded (under 64 KiB), and cheap to lose.

A fresh state knows nothing and therefore shrinks nothing: until a full window is seen it holds what it finds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, Self

from autoscaler import capacity, forecast, keepalive, starts, timer, window
from autoscaler.behavior import History
from autoscaler.need import REACTION_S
from autoscaler.types import Sample, Supply

_DOUBT_FROM = 4.0
"""Requests under way from which all of them gone with none completed is no news but an error."""
_DOUBT_S = 600.0
"""After which it is believed all the same."""
_SILENCE_GAP_S = 2.0
"""Unreported seconds that do not break a silence: a report that comes a little late."""


class State(NamedTuple):
    """Memory of one model; times on the caller's clock."""

    # Seen:
    started: float
    history: forecast.History
    marks: window.Marks = ()
    levels: window.Levels = ()
    silent_from: float = 0.0
    """Since when it is known that no request arrived, waited or ran."""
    silent_until: float = 0.0
    strained_from: float | None = None
    """Since when requests queue although every wanted replica is ready; None while they do not."""
    ready: int = 0
    flying: float = 0.0
    """Requests in flight and queued at the last report, on average over it."""
    balance: float = 0.0
    """Requests that arrived and have not completed."""
    learned: capacity.Learned = capacity.Learned()
    starts: starts.Starts = starts.Starts()
    lost_at: float | None = None
    """When ready replicas last became unready; they may come back."""
    active_at: float = 0.0
    """When a request was last seen."""
    onsets: timer.Onsets = ()
    """When bursts began after a silence."""
    rhythm: timer.Rhythm | None = None
    """Of the onsets."""
    silences: keepalive.Silences = ()
    """How long requests were away before they came again."""
    # Decided:
    wanted: int | None = None
    """The last recommendation; None before the first."""
    highs: History = ()
    """Past wants as the window down sees them (`behavior.remember_high`)."""
    lows: History = ()
    events: History = ()
    """Changes of the recommendation, signed."""
    judged_at: float | None = None
    """When wants were last recorded, that is, judged on data."""
    doubted_from: float | None = None
    """Since when the gateway reads 0 although requests were under way that cannot have ended."""
    carried: tuple[float, float] | None = None
    """Requests per second a replica served when last backlogged, and when that was."""
    boost: float = 1.0
    boosted_until: float = 0.0

    @classmethod
    def initial(cls, now: float, phase: float = 0.0) -> Self:
        """Nothing seen yet: a new model, or a controller that has just started.

        `phase` (0 to 1, any spread will do) shifts when the model's forecast is made, so that many share the work.
        """
        return cls(started=now, silent_from=now, silent_until=now, active_at=now, history=forecast.begin(now, phase))


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


def doubt(state: State, sample: Sample, now: float) -> tuple[Sample, float | None]:
    """The sample, emptied where it cannot be true, and since when that is so.

    Requests leave by completing. Several under way, and a moment later none, and none completed: the meter has failed.
    """
    if sample.arrivals or sample.completions or sample.in_flight or sample.queued or sample.queued_now:
        return sample, None
    since = state.doubted_from
    if sample.arrivals is None or sample.completions is None or sample.in_flight is None or sample.dt < 0.5:
        return sample, since
    if since is None:
        since = now if min(state.flying, state.balance) >= _DOUBT_FROM else None
    elif now - since > _DOUBT_S:
        return sample, since
    return (sample if since is None else replace(sample, arrivals=None, completions=None)), since


def observe(state: State, supply: Supply, sample: Sample, current: int, limit: int, now: float) -> State:
    """The state with one sample more; decides nothing."""
    (
        started,
        history,
        marks,
        levels,
        silent_from,
        silent_until,
        strained_from,
        was_ready,
        flying,
        balance,
        learned,
        known_starts,
        lost_at,
        active_at,
        onsets,
        rhythm,
        silences,
        *decided,
    ) = state
    ready, starting = supply.ready, supply.starting
    dt, arrivals, in_flight, queued = sample.dt, sample.arrivals, sample.in_flight, sample.queued
    active = is_active(sample)
    if active or ready > was_ready:
        silent_from = silent_until = now
    elif arrivals is not None and in_flight is not None and queued is not None:
        begin = now - max(0.0, dt)
        if begin > silent_until + _SILENCE_GAP_S:
            silent_from = begin
        silent_until = now
    if active:
        silences = keepalive.remember(silences, now - active_at)
        if now - active_at > timer.SILENCE_S:
            onsets = timer.remember(onsets, now)
            rhythm = timer.rhythm(onsets)
        active_at = now
    if arrivals is not None and in_flight is not None:
        if dt >= 0.5:
            flying = in_flight + (queued or 0.0)
            # Requests that were refused may never be counted as completed: what is in flight bounds the balance.
            balance = max(0.0, min(balance + arrivals - (sample.completions or 0), 2.0 * flying + 10.0))
        if dt > 0 and sample.completions is not None:
            learned = capacity.observe(learned, sample.completions, in_flight, supply.boost, ready, limit, dt, now)
    if ready < was_ready and ready + starting >= was_ready + len(known_starts.pending):
        lost_at = now
    known_starts = starts.observe(known_starts, ready, starting, now)
    if starting or not 0 < current <= ready or (queued is not None and queued < 1.0):
        strained_from = None
    elif queued is not None and (strained_from is None or ready > was_ready):
        strained_from = now
    marks = window.add(marks, sample, now)
    if now >= history.ends:
        arrived, covered_s = (marks[-1].arrivals, marks[-1].covered) if marks else (0.0, 0.0)
        horizon_s = starts.expected_s(known_starts, supply.expected_ready_s) + REACTION_S
        history = forecast.observe(history, arrived, covered_s, horizon_s, now)
    if levels or sample.cpu or sample.memory or sample.device_memory:
        levels = window.measure(levels, sample, supply, now)
    seen = (
        started,
        history,
        marks,
        levels,
        silent_from,
        silent_until,
        strained_from,
        ready,
        flying,
        balance,
        learned,
        known_starts,
        lost_at,
        active_at,
        onsets,
        rhythm,
        silences,
    )
    return State._make((*seen, *decided))
