"""How many replicas a model should have, and why: one pure function, called every second and at once on a wake.

`recommend` looks at the sample (window.py, state.py), lets each signal say its need (signals.py), and then applies, in
this order, each a small function that may change the count and says so:

    decide       the greatest need wins; fewer only if every signal is there and asks for fewer; tolerance
    hold         nothing shrinks on missing data, nor before a full window was seen
    idle         with min_replicas 0: the last replica stays until `idle_s` of known silence, then all go at once
    stabilize    HPA v2's windows over what was wanted before (silence has a delay of its own and skips them)
    limit        HPA v2's policies over what was changed before
    timer        with min_replicas 0: one replica is made ready for a burst that comes by the clock
    wake         a request, and nothing there or to come: at least one replica now
    bound        min and max, or those of the schedules' open windows (schedule.py)
    fixed        a count set by hand stands above all of this
    advise       in advisory mode it is said that nobody acts on it

Counts include starting replicas, so what was asked for is not asked for again while it loads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from autoscaler import behavior as hpa
from autoscaler import keepalive, timer
from autoscaler.forecast import latest
from autoscaler.need import boost
from autoscaler.schedule import bounds
from autoscaler.signals import Scene, look, read
from autoscaler.starts import expected_s
from autoscaler.state import State, doubt, is_active, observe, standing
from autoscaler.types import Behavior, Recommendation, Rules, Sample, ScalingPolicy, SignalReading, Supply
from autoscaler.window import FULL_SHARE, STABLE_S
from autoscaler.words import Words

__all__ = ["State", "recommend"]

BOOST_S = 15.0
"""A slice that has grown stays so for this long at least."""
_NOT_ACTED_ON = "advisory: shown and recorded, not acted on"
_EXACT = Behavior(Rules(0.0, "Max", (), 0.0), Rules(0.0, "Max", (), 0.0))
"""For needs that carry their own margin: a tolerance would take it away."""


class _Verdict(NamedTuple):
    wanted: int
    signal: str
    words: tuple[Words, ...]

    def turn(self, count: int, signal: str, reason: Words) -> _Verdict:
        return _Verdict(count, signal, (*self.words, reason))


def recommend(
    policy: ScalingPolicy, supply: Supply, sample: Sample, state: State, now: float, at: datetime | None = None
) -> tuple[Recommendation, State]:
    """The count wanted now and the state for the next call; `state` itself is not changed.

    `now` is seconds on the clock of `State.initial`, never going back. `sample.dt` may be 0 or irregular. The count
    lies within [min_replicas, max_replicas] unless `fixed_replicas` is set, which is recommended as it is.

    `at` is the time of day (with a zone) and has to be given where the policy has schedules; ValueError otherwise.
    """
    policy, window = _scheduled(policy, supply, state, at) if policy.schedules else (policy, "")
    current = supply.ready + supply.starting if policy.advisory else standing(state, supply, now)
    sample, doubted_from = doubt(state, sample, now)
    seen = observe(state, supply, sample, current, policy.concurrency_limit, now)
    due = current <= 1 and policy.min_replicas == 0 and _is_due(seen, supply, now)
    if not due and doubted_from is None and _is_asleep(policy, supply, sample, current):
        return _asleep(seen, now, policy, window)
    scene = look(policy, supply, sample, seen, current, now)
    says = read(policy, scene)
    verdict = _decide(says, current, policy)
    # Whether the data suffice matters only where something could shrink.
    blind = _blindness(scene, doubted_from) if verdict.wanted < current or policy.min_replicas == 0 else ""
    idle = not due and _is_idle(policy, scene, blind)
    verdict = _hold(verdict, current, blind)
    if policy.min_replicas == 0:
        verdict = _idle(verdict, policy, scene, idle)

    *observed, _, highs, lows, events, judged_at, _, _, _, _ = seen
    if judged_at is None:
        # As HPA does after its own restart: what is running counts as wanted until the windows have passed.
        highs = lows = ((now, current),)
        judged_at = now
    elif now - judged_at > STABLE_S and verdict.signal != "hold":
        highs = hpa.remember_high(highs, now, current)
    want, signal, _ = verdict
    if not idle and want != current:
        verdict = _stabilize(verdict, policy, current, highs, lows, now)
    if signal != "hold" or now - state.started < STABLE_S:
        highs, lows, judged_at = hpa.remember_high(highs, now, want), hpa.remember_low(lows, now, want), now
    if verdict.wanted != current:
        verdict = _limit(verdict, policy, current, events, now)
    if due:
        verdict = _timer(verdict, scene)
    if current == 0:
        verdict = _wake(verdict, scene)
    verdict = _bound(verdict, policy, window)
    if policy.fixed_replicas is None and not policy.advisory:
        events = hpa.remember_event(events, now, verdict.wanted - current)
    else:
        events = hpa.remember_event(events, now, 0)
        verdict = _advise(_fix(verdict, policy), policy)

    boosted, boosted_until = _boost(policy, scene) if policy.max_boost > 1.0 else (1.0, 0.0)
    wanted, signal, words = verdict
    known = scene.capacity.rate if scene.capacity else None
    previous = supply.ready + supply.starting
    coming = latest(seen.history)
    expected = coming.middle if coming else None
    advice = Recommendation(wanted, previous, signal, says, words, boosted, known, policy.advisory, window, expected)
    decided = (wanted, highs, lows, events, judged_at, doubted_from, scene.carried, boosted, boosted_until)
    return advice, State._make((*observed, *decided))


def _scheduled(policy: ScalingPolicy, supply: Supply, state: State, at: datetime | None) -> tuple[ScalingPolicy, str]:
    """The policy with the bounds of the windows that are open, and which those are."""
    if at is None:
        raise ValueError("at: the policy has schedules and no time is given; pass an aware datetime")
    lead_s = expected_s(state.starts, supply.expected_ready_s)
    least, most, words = bounds(policy.schedules, policy.min_replicas, policy.max_replicas, at, lead_s)
    return replace(policy, min_replicas=least, max_replicas=most), words


def _is_asleep(policy: ScalingPolicy, supply: Supply, sample: Sample, current: int) -> bool:
    """At zero, and known to be asked for nothing: most models of a large fleet, which should cost little."""
    return (
        current == 0
        and policy.min_replicas == 0
        and policy.fixed_replicas is None
        and supply.ready + supply.starting == 0
        and sample.arrivals is not None
        and not is_active(sample)
    )


def _asleep(seen: State, now: float, policy: ScalingPolicy, window: str) -> tuple[Recommendation, State]:
    reason = ("no request for %.0f s: stays at zero", now - seen.silent_from)
    state = seen._replace(
        wanted=0,
        highs=hpa.remember_high(seen.highs, now, 0),
        lows=hpa.remember_low(seen.lows, now, 0),
        judged_at=now,
        doubted_from=None,
        boost=1.0,
    )
    words = (reason, _NOT_ACTED_ON) if policy.advisory else (reason,)
    return Recommendation(0, 0, "idle", (), words, advisory=policy.advisory, window=window), state


def _boost(policy: ScalingPolicy, scene: Scene) -> tuple[float, float]:
    """How many times its slice each replica should have, and until when it keeps that at least."""
    state, now = scene.state, scene.now
    if scene.capacity is None:
        return 1.0, 0.0
    ready = scene.supply.ready
    wanted = boost(scene.capacity, scene.rate, scene.queued or 0.0, ready, policy.max_boost, policy.objective)
    if wanted >= state.boost:
        return wanted, now + BOOST_S
    return (state.boost, state.boosted_until) if now < state.boosted_until else (wanted, now + BOOST_S)


def _decide(says: tuple[SignalReading, ...], current: int, policy: ScalingPolicy) -> _Verdict:
    missing: tuple[Words, ...] = ()
    decisive: SignalReading | None = None
    count = itself = -1
    is_queue_alone = True
    for say in says:
        _, _, _, wanted, words, up, down, is_exact = say
        if wanted is None:
            if math.isinf(down):
                missing = (*missing, words)
            continue
        if say.name == "queue":
            # An empty queue asks for nothing, but alone it is no reason to remove what it would queue for.
            if is_queue_alone and up <= current:
                continue
        else:
            is_queue_alone = False
        proposed = hpa.propose(up, down, current, _EXACT if is_exact else policy.behavior)
        # Among equals the one that asked for most itself has decided.
        if proposed > count or (proposed == count and wanted > itself):
            count, itself, decisive = proposed, wanted, say
    if decisive is None:
        notes = tuple(say.words for say in says if say.replicas is None)
        return _Verdict(current, "hold", (*notes, ("no signal has anything to go by: keeps %d", current)))

    verdict = _Verdict(count, decisive.name, (decisive.words, *missing))
    if count < current and missing:
        return verdict.turn(current, "hold", ("not all signals are there: keeps %d", current))
    if count == current and decisive.replicas != current:
        rules = policy.behavior.up if (decisive.replicas or 0) > current else policy.behavior.down
        words = ("within the tolerance of %g percent: keeps %d", rules.tolerance * 100, current)
        return verdict.turn(current, "tolerance", words)
    return verdict


def _blindness(scene: Scene, doubted_from: float | None) -> Words:
    """Why the data do not suffice to shrink; empty when they do."""
    if doubted_from is not None:
        gone = ("%.0f requests were under way and none completed", scene.state.flying)
        return ("the gateway reads 0 since %.0f s although %s: not believed", scene.now - doubted_from, gone)
    if scene.sample.arrivals is None:
        return "no gateway worker reported"
    seen = scene.now - scene.state.started
    if seen < STABLE_S:
        return ("only %.0f s seen since the start", seen)
    if scene.stable.covered < FULL_SHARE * STABLE_S:
        return ("only %.0f of %g s are covered by reports", scene.stable.covered, STABLE_S)
    return ""


def _hold(verdict: _Verdict, current: int, blind: Words) -> _Verdict:
    if blind and verdict.wanted < current:
        return verdict.turn(current, "hold", ("%s: keeps %d", blind, current))
    return verdict


def _is_idle(policy: ScalingPolicy, scene: Scene, blind: Words) -> bool:
    return (
        policy.min_replicas == 0
        and scene.current > 0
        and not blind
        # A slow loader is let finish: it was started for somebody who may come back.
        and scene.supply.starting == 0
        and scene.state.silent_until == scene.now
        and scene.now - scene.state.silent_from >= _idle_s(policy, scene)
    )


def _idle_s(policy: ScalingPolicy, scene: Scene) -> float:
    """How long silence may last: less where bursts come by the clock, since it is known when the next is due."""
    if scene.state.rhythm is not None and len(scene.state.onsets) >= timer.TRUSTED:
        return min(policy.idle_s, timer.KEEP_S)
    return keepalive.keep_s(scene.state.silences, policy.idle_s)


def _is_due(state: State, supply: Supply, now: float) -> bool:
    if state.rhythm is None:
        return False
    return timer.is_due(state.onsets[-1], state.rhythm, expected_s(state.starts, supply.expected_ready_s), now)


def _timer(verdict: _Verdict, scene: Scene) -> _Verdict:
    if verdict.wanted >= 1:
        return verdict
    usual, off = scene.state.rhythm or (0.0, 0.0)
    since = scene.now - scene.state.onsets[-1]
    words = ("bursts come every %.0f s (give or take %.0f s), the last %.0f s ago: 1 is made ready", usual, off, since)
    return verdict.turn(1, "timer", words)


def _idle(verdict: _Verdict, policy: ScalingPolicy, scene: Scene, idle: bool) -> _Verdict:
    if scene.current == 0:
        return verdict
    silent = scene.now - scene.state.silent_from
    if idle:
        allowed = _idle_s(policy, scene)
        return _Verdict(0, "idle", (("no request for %.0f s, %g s allowed: to zero", silent, allowed),))
    if verdict.wanted > 0:
        return verdict
    if scene.supply.starting:
        return verdict.turn(1, "idle", "a replica that is still starting is let finish before zero: keeps 1")
    allowed = _idle_s(policy, scene)
    return verdict.turn(1, "idle", ("no request for %.0f s, to zero after %g s: keeps 1", silent, allowed))


def _stabilize(
    verdict: _Verdict, policy: ScalingPolicy, current: int, highs: hpa.History, lows: hpa.History, now: float
) -> _Verdict:
    count = hpa.stabilize(policy.behavior, current, verdict.wanted, highs, lows, now)
    if count == verdict.wanted:
        return verdict
    if count > verdict.wanted:
        window = policy.behavior.down.stabilization_s
        return verdict.turn(count, "stabilization", ("wanted within the last %g s: keeps %d", window, count))
    window = policy.behavior.up.stabilization_s
    return verdict.turn(count, "stabilization", ("not more than wanted all of the last %g s: %d", window, count))


def _limit(verdict: _Verdict, policy: ScalingPolicy, current: int, events: hpa.History, now: float) -> _Verdict:
    if verdict.wanted > current:
        count = min(verdict.wanted, hpa.up_limit(policy.behavior.up, current, events, now))
        words = "scaleUp"
    else:
        count = max(verdict.wanted, hpa.down_limit(policy.behavior.down, current, events, now))
        words = "scaleDown"
    if count == verdict.wanted:
        return verdict
    return verdict.turn(count, "behavior", ("behavior.%s allows %d now", words, count))


def _wake(verdict: _Verdict, scene: Scene) -> _Verdict:
    sample = scene.sample
    if verdict.wanted > 1 or not (sample.wake or sample.arrivals or sample.queued_now):
        return verdict
    return verdict.turn(1, "wake", "a request is there and no replica: at least 1 at once")


def _bound(verdict: _Verdict, policy: ScalingPolicy, window: str) -> _Verdict:
    by = f" (the window {window})" if window else ""
    if verdict.wanted > policy.max_replicas:
        return verdict.turn(policy.max_replicas, "schedule" if by else "max", ("at most %d%s", policy.max_replicas, by))
    if verdict.wanted < policy.min_replicas:
        return verdict.turn(
            policy.min_replicas, "schedule" if by else "min", ("at least %d%s", policy.min_replicas, by)
        )
    return verdict


def _fix(verdict: _Verdict, policy: ScalingPolicy) -> _Verdict:
    if policy.fixed_replicas is None:
        return verdict
    words = ("set by hand to %d; automatic would be %d", policy.fixed_replicas, verdict.wanted)
    return verdict.turn(policy.fixed_replicas, "fixed", words)


def _advise(verdict: _Verdict, policy: ScalingPolicy) -> _Verdict:
    return verdict.turn(verdict.wanted, verdict.signal, _NOT_ACTED_ON) if policy.advisory else verdict
