"""What each signal says, as a need in (fractional) replicas between a lower and an upper bound.

`up` is the need that is certain enough to add replicas for, `down` the need that must stay served when some are
removed. For most signals both are load / target. They differ where the data are partial:

- usage of a replica that could not be measured counts 0 upwards and 100 percent downwards, as in HPA;
- replicas above their target, while others are still to come, say only "not fewer": a saturated replica cannot show
  how much more there is to do;
- requests that queue while replicas start hold the count and never raise it: they are what the start is for. Only what
  all wanted replicas, ready for a full window, will not work off in time is a need, and it at most doubles the count;
- what a replica served while backlogged is remembered for a while and keeps the count from falling back into that;
- a missing signal has the bounds 0 and infinity: others may add replicas, nobody removes one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from autoscaler import window
from autoscaler.behavior import round_up
from autoscaler.capacity import Capacity, known
from autoscaler.need import LIKELY_Z, REACTION_S, certain, need
from autoscaler.starts import expected_s
from autoscaler.state import State
from autoscaler.types import ExternalTarget, MetricTarget, Sample, ScalingPolicy, SignalReading, Supply
from autoscaler.words import Words

CONCURRENCY_SHARE = 0.7
"""Of the concurrency limit, where concurrency decides and no target is given."""
UNBOUNDED_LIMIT = 100
"""Stands in for a limit that is not set (Knative's default target)."""
ABSORB_S = 120.0
"""A backlog that will be gone within this time asks for nothing."""
DRAIN_S = 30.0
"""One that will not is planned to be gone within this."""
_LONG_WAIT_S = 1.0
_CARRIED_S = 600.0
"""How long a backlog is remembered; then a fall is tried again."""
RETURN_S = 180.0
"""For so long after replicas became unready they are what will serve the queue that they left."""
_FULL = 0.95
"""Share of the slots that are busy when replicas can do no more."""
_FULL_SERVICES = 3.0
"""Services that fit into the stable window, at least, for what is completed in it to say what can be done."""
_SURE_Z = 3.0
_MOST_FACTOR = 1e9
"""Times its target that an external metric counts at most."""
_RESOURCE_WORDS = {"cpu": "CPU", "memory": "memory", "deviceMemory": "device memory"}


class Scene(NamedTuple):
    """What every signal looks at."""

    supply: Supply
    sample: Sample
    state: State
    current: int
    now: float
    stable: window.Totals
    short: window.Totals
    rate: window.Estimate
    """Arrivals per second."""
    queued: float | None
    """Mean over the short window; None when unknown."""
    backlog: bool
    """Requests wait for longer than a passing burst makes them."""
    unabsorbed: bool
    """A backlog stood for a full window, all wanted replicas ready, and will for longer than ABSORB_S."""
    carried: tuple[float, float] | None
    """`State.carried` after this sample."""
    capacity: Capacity | None
    """What a replica is known to do."""


def look(policy: ScalingPolicy, supply: Supply, sample: Sample, state: State, current: int, now: float) -> Scene:
    """Sum up both windows of the state, into which the sample was put before."""
    stable, short = window.both(state.marks, now)
    _, _, _, _, loaded, _, waiting = short
    queued = waiting / loaded if loaded else sample.queued
    backlog = unabsorbed = False
    if queued:
        older = stable.loaded - loaded
        before = (stable.queued - waiting) / older if older > 0 else 0.0
        served = stable.completions / stable.worked if stable.worked else None
        # Only what stood in the older part of the window too is a backlog; less is a burst that passes.
        backlog = min(queued, before) > (float(current) if served is None else max(1.0, served * _LONG_WAIT_S))
        since = state.strained_from
        falling = (before - queued) / (window.STABLE_S / 2)
        strained = since is not None and now - since >= window.STABLE_S
        unabsorbed = backlog and strained and falling * ABSORB_S < queued and not _is_returning(state, now)
    return Scene(
        supply,
        sample,
        state,
        current,
        now,
        stable,
        short,
        window.rate(stable, short),
        queued,
        backlog,
        unabsorbed,
        _carried(state.carried, supply, stable, unabsorbed, now) if unabsorbed or state.carried else None,
        known(state.learned, policy.concurrency_limit),
    )


def _is_returning(state: State, now: float) -> bool:
    return state.lost_at is not None and now - state.lost_at < RETURN_S


def _carried(
    known: tuple[float, float] | None, supply: Supply, stable: window.Totals, unabsorbed: bool, now: float
) -> tuple[float, float] | None:
    """Learned from a backlog, raised by what is served since, then forgotten."""
    if known is not None and now - known[1] > _CARRIED_S:
        known = None
    if not supply.ready or not stable.completions:
        return known
    served = stable.completions / max(stable.worked, window.SHORT_S) / supply.ready
    return (served, now) if unabsorbed else known and (max(known[0], served), known[1])


def read(policy: ScalingPolicy, scene: Scene) -> tuple[SignalReading, ...]:
    """Every signal that the policy names, and the queue."""
    says: list[SignalReading] = []
    if policy.target_qps is not None and (policy.mode == "honour" or scene.capacity is None):
        says.append(_qps(policy.target_qps, scene))
    if scene.capacity is not None:
        says.append(_capacity(policy, scene.capacity, scene))
    if metrics := targets(policy, is_known=scene.capacity is not None):
        says += [_concurrency(m.target, scene) if m.name == "concurrency" else _resource(m, scene) for m in metrics]
    if policy.external:
        says += [_external(target, scene) for target in policy.external]
    says.append(_queue(scene))
    return tuple(says)


def targets(policy: ScalingPolicy, *, is_known: bool) -> tuple[MetricTarget, ...]:
    """The metrics that decide: those given; concurrency, while the capacity of a replica is not known and no load
    signal is given or the target is a guess."""
    metrics = policy.metrics
    if is_known or (metrics and any(m.name == "concurrency" for m in metrics)):
        return metrics
    if policy.mode == "learn" or (policy.target_qps is None and not metrics and not policy.external):
        limit = policy.concurrency_limit or UNBOUNDED_LIMIT
        return (*metrics, MetricTarget("concurrency", CONCURRENCY_SHARE * limit))
    return metrics


def _say(
    name: str,
    value: float,
    target: float,
    up: float,
    down: float,
    current: int,
    words: Words,
    is_exact: bool = False,
) -> SignalReading:
    replicas = round_up(up)
    if replicas < current:
        replicas = current if math.isinf(down) else max(replicas, min(current, round_up(down)))
    return SignalReading(name, value, target, replicas, ("%s want %d", words, replicas), up, down, is_exact)


def _missing(name: str, target: float, words: Words) -> SignalReading:
    return SignalReading(name, None, target, None, words, 0.0, math.inf)


def _over(estimate: window.Estimate) -> Words:
    _, seconds, before = estimate
    return ("over %g s", seconds) if before is None else ("over %g s (risen from %.1f)", seconds, before)


def _qps(target: float, scene: Scene) -> SignalReading:
    if scene.sample.arrivals is None:
        return _missing("qps", target, "request rate is missing: no gateway worker reported")
    value, _, before = scene.rate
    planned = value
    if before is not None and scene.capacity is not None:
        # A passing burst is for the capacity signal to judge: what is certain of the rise counts here.
        planned = max(before, certain(scene.rate, LIKELY_Z))
    need = planned / target
    words = ("%.1f requests/s %s at %g per replica", value, _over(scene.rate), target)
    return _say("qps", value, target, need, need, scene.current, words)


def _capacity(policy: ScalingPolicy, capacity: Capacity, scene: Scene) -> SignalReading:
    if scene.sample.arrivals is None:
        return _missing("capacity", capacity.rate, "what is coming is not known: no gateway worker reported")
    if policy.min_replicas == 0 and scene.rate.value == 0.0 and not scene.queued:
        # What is left of the forecast after a silence is memory; how long to stay for it is the idle time's business.
        return SignalReading("capacity", 0.0, capacity.rate, 0, "no requests")
    state, now = scene.state, scene.now
    queued = 0.0
    if scene.queued:
        capacity = _at_most(capacity, scene)
        queued = 0.0 if _is_returning(state, now) else scene.queued
    slowed_at = state.learned.slowed_at
    horizon_s = expected_s(state.starts, scene.supply.expected_ready_s) + REACTION_S
    up, down, rate, words = need(
        capacity,
        state.history,
        scene.rate,
        queued,
        scene.supply.ready,
        scene.current,
        horizon_s,
        policy.objective,
        policy.max_boost,
        now,
        has_slowed=slowed_at is not None and now - slowed_at < horizon_s,
    )
    return _say("capacity", rate, capacity.rate, up, down, scene.current, words, True)


def _at_most(capacity: Capacity, scene: Scene) -> Capacity:
    """The capacity, or less: what full replicas with a queue complete is all that they can do, whatever was learned.

    A drift shows here before it has moved the memories of capacity.py. Completions are taken as Poisson's.
    """
    stable, ready = scene.stable, scene.supply.ready
    if not ready or scene.queued is None or scene.queued < 1.0 or stable.worked < window.FULL_SHARE * window.STABLE_S:
        return capacity
    if stable.in_flight < _FULL * ready * capacity.slots * stable.loaded:
        return capacity
    if capacity.slots / capacity.rate * _FULL_SERVICES > window.STABLE_S:
        return capacity
    most = (stable.completions + _SURE_Z * math.sqrt(stable.completions)) / stable.worked / ready
    if most >= capacity.low:
        return capacity
    return capacity._replace(rate=min(capacity.rate, most), low=most)


def _concurrency(target: float, scene: Scene) -> SignalReading:
    if scene.sample.arrivals is None or scene.sample.in_flight is None or scene.sample.queued is None:
        return _missing("concurrency", target, "concurrency is missing: no gateway worker reported it")
    stable, short = scene.stable, scene.short
    flying = window.level(stable.in_flight, stable.loaded, short.in_flight, short.loaded)
    both = window.level(stable.in_flight + stable.queued, stable.loaded, short.in_flight + short.queued, short.loaded)
    up = flying.value / target
    down = max(up, both.value / target)
    served = ""
    if down > up and scene.unabsorbed:
        up = max(up, min(down, 2.0 * scene.current))
    elif down > up:
        served = ", the queue being served by replicas there or to come,"
    words = ("%.1f requests in flight and queued %s at %g per replica%s", both.value, _over(both), target, served)
    return _say("concurrency", both.value, target, up, down, scene.current, words)


def _resource(metric: MetricTarget, scene: Scene) -> SignalReading:
    name, target, words = metric.name, metric.target, _RESOURCE_WORDS[metric.name]
    latest = {
        "cpu": scene.sample.cpu,
        "memory": scene.sample.memory,
        "deviceMemory": scene.sample.device_memory,
    }[name]  # fmt: skip
    if scene.supply.ready == 0:
        return SignalReading(name, None, target, None, ("%s: no replica is ready yet", words))
    usage = window.usage(scene.state.levels, scene.now, name) if latest else None
    if usage is None:
        absent = ("%s is missing: of %d ready replicas none was measured", words, scene.supply.ready)
        return _missing(name, target, absent)
    up = usage.total / target
    down = (usage.total + usage.missing * max(100.0, target)) / target
    if usage.mean > target:
        down = math.inf
    seen = ("%d of %d", usage.measured, usage.measured + usage.missing) if usage.missing else ("%d", usage.measured)
    note = ("%s at %.0f percent (mean of %s ready) at a target of %g percent", words, usage.mean, seen, target)
    return _say(name, usage.mean, target, up, down, scene.current, note)


def _external(metric: ExternalTarget, scene: Scene) -> SignalReading:
    name, target, ready = metric.name, metric.target, scene.supply.ready
    known = next((e for e in scene.sample.external if e.name == name), None)
    if known is None or known.value is None:
        return _missing(name, target, ("%s is missing: %s", name, known.note if known else "nobody measured it"))
    value = known.value
    # Whatever nonsense somebody else measures, the count stays a number.
    factor = min(max(0.0, value) / target, _MOST_FACTOR)
    if metric.type == "AverageValue":
        need = factor
        words = ("%s at %.3g at %g per replica", name, value, target)
        return _say(name, value, target, need, need, scene.current, words)
    if ready == 0:
        return SignalReading(name, value, target, None, ("%s: no replica is ready yet", name))
    up = down = factor * ready
    if value > target:
        # How far the replicas that are still to come lower it is not known yet.
        down = math.inf
    note = ("%s at %.3g with %d ready at a target of %g", name, value, ready, target)
    return _say(name, value, target, up, down, scene.current, note)


def _queue(scene: Scene) -> SignalReading:
    queued = scene.queued
    if scene.sample.arrivals is None or queued is None:
        return SignalReading("queue", None, 0.0, None, "queue length is missing")
    stable, current = scene.stable, scene.current
    if not scene.backlog:
        return _no_backlog(queued, scene)
    words: Words
    if not scene.unabsorbed:
        words = ("%.1f requests queued: the replicas there or to come will serve them, keep %d", queued, current)
        return SignalReading("queue", queued, 0.0, current, words, 0.0, math.inf)
    if stable.completions:
        served = stable.completions / stable.worked
        carried = served / scene.supply.ready
        arriving = stable.arrivals / stable.covered
        need = min((arriving + queued / DRAIN_S) / carried, 2.0 * current)
        words = ("%.1f of %.1f requests/s served by %d ready,", served, arriving, scene.supply.ready)
        words = ("%.1f requests queued and not falling, %s", queued, words)
    else:
        need = current + 1.0
        words = ("%.1f requests queued and not falling,", queued)
    return _say("queue", queued, 0.0, need, math.inf, current, words)


def _no_backlog(queued: float, scene: Scene) -> SignalReading:
    words: Words = ("%.1f requests queued: no backlog", queued)
    known = scene.carried
    if known is None:
        return SignalReading("queue", queued, 0.0, 0, words)
    need = scene.rate.value / known[0]
    ago = scene.now - known[1]
    words = ("%s, but %.1f requests/s a replica were too many %.0f s ago,", words, known[0], ago)
    return _say("queue", queued, 0.0, 0.0, need, scene.current, words)
