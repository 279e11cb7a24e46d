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


class Say(NamedTuple):
    """One signal's reading and its bounds on the replicas needed."""

    reading: SignalReading
    up: float
    down: float
    is_exact: bool = False
    """It carries its own margin, so no tolerance applies."""

    @property
    def is_missing(self) -> bool:
        """Nothing was measured where something should have been."""
        return self.reading.replicas is None and math.isinf(self.down)


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
    stable, short = window.both(state.spans, now)
    queued = short.queued / short.loaded if short.loaded else sample.queued
    older = stable.loaded - short.loaded
    before = (stable.queued - short.queued) / older if older > 0 else 0.0
    backlog = unabsorbed = False
    if queued is not None:
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
        _carried(state.carried, supply, stable, unabsorbed, now),
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


def read(policy: ScalingPolicy, scene: Scene) -> tuple[Say, ...]:
    """Every signal that the policy names, and the queue."""
    says: list[Say] = []
    if policy.target_qps is not None and (policy.mode == "honour" or scene.capacity is None):
        says.append(_qps(policy.target_qps, scene))
    if scene.capacity is not None:
        says.append(_capacity(policy, scene.capacity, scene))
    says += [
        _concurrency(metric.target, scene) if metric.name == "concurrency" else _resource(metric, scene)
        for metric in targets(policy, is_known=scene.capacity is not None)
    ]
    says += [_external(target, scene) for target in policy.external]
    says.append(_queue(scene))
    return tuple(says)


def targets(policy: ScalingPolicy, *, is_known: bool) -> tuple[MetricTarget, ...]:
    """The metrics that decide: those given; concurrency, while the capacity of a replica is not known and no load
    signal is given or the target is a guess."""
    if is_known or any(m.name == "concurrency" for m in policy.metrics):
        return policy.metrics
    if policy.mode == "learn" or (policy.target_qps is None and not policy.metrics and not policy.external):
        limit = policy.concurrency_limit or UNBOUNDED_LIMIT
        return (*policy.metrics, MetricTarget("concurrency", CONCURRENCY_SHARE * limit))
    return policy.metrics


def _say(
    name: str, value: float, target: float, up: float, down: float, current: int, note: str, *, is_exact: bool = False
) -> Say:
    replicas = round_up(up)
    if replicas < current:
        replicas = current if math.isinf(down) else max(replicas, min(current, round_up(down)))
    return Say(SignalReading(name, value, target, replicas, f"{note} want {replicas}"), up, down, is_exact)


def _missing(name: str, target: float, note: str) -> Say:
    return Say(SignalReading(name, None, target, None, note), 0.0, math.inf)


def _over(estimate: window.Estimate) -> str:
    before = "" if estimate.before is None else f" (risen from {estimate.before:.1f})"
    return f"over {estimate.window:g} s{before}"


def _qps(target: float, scene: Scene) -> Say:
    if scene.sample.arrivals is None:
        return _missing("qps", target, "request rate is missing: no gateway worker reported")
    estimate = scene.rate
    planned = estimate.value
    if estimate.before is not None and scene.capacity is not None:
        # A passing burst is for the capacity signal to judge: what is certain of the rise counts here.
        planned = max(estimate.before, certain(estimate, LIKELY_Z))
    need = planned / target
    note = f"{estimate.value:.1f} requests/s {_over(estimate)} at {target:g} per replica"
    return _say("qps", estimate.value, target, need, need, scene.current, note)


def _capacity(policy: ScalingPolicy, capacity: Capacity, scene: Scene) -> Say:
    if scene.sample.arrivals is None:
        return _missing("capacity", capacity.rate, "what is coming is not known: no gateway worker reported")
    if policy.min_replicas == 0 and scene.rate.value == 0.0 and not scene.queued:
        # What is left of the forecast after a silence is memory; how long to stay for it is the idle time's business.
        return Say(SignalReading("capacity", 0.0, capacity.rate, 0, "no requests"), 0.0, 0.0)
    state = scene.state
    capacity = _at_most(capacity, scene)
    queued = scene.queued or 0.0
    if _is_returning(state, scene.now):
        queued = 0.0
    horizon_s = expected_s(state.starts, scene.supply.expected_ready_s) + REACTION_S
    wanted = need(
        capacity,
        state.history,
        scene.rate,
        queued,
        scene.supply.ready,
        scene.current,
        horizon_s,
        policy.objective,
        policy.max_boost,
        scene.now,
        has_slowed=state.learned.slowed_at is not None and scene.now - state.learned.slowed_at < horizon_s,
    )
    up, down, rate, words = wanted
    return _say("capacity", rate, capacity.rate, up, down, scene.current, words, is_exact=True)


def _at_most(capacity: Capacity, scene: Scene) -> Capacity:
    """The capacity, or less: what full replicas with a queue complete is all that they can do, whatever was learned.

    A drift shows here before it has moved the memories of capacity.py. Completions are taken as Poisson's.
    """
    stable, ready = scene.stable, scene.supply.ready
    if not ready or not scene.queued or scene.queued < 1.0 or stable.worked < window.FULL_SHARE * window.STABLE_S:
        return capacity
    if stable.in_flight < _FULL * ready * capacity.slots * stable.loaded:
        return capacity
    if capacity.slots / capacity.rate * _FULL_SERVICES > window.STABLE_S:
        return capacity
    most = (stable.completions + _SURE_Z * math.sqrt(stable.completions)) / stable.worked / ready
    if most >= capacity.low:
        return capacity
    return capacity._replace(rate=min(capacity.rate, most), low=most)


def _concurrency(target: float, scene: Scene) -> Say:
    if scene.sample.arrivals is None or scene.sample.in_flight is None or scene.sample.queued is None:
        return _missing("concurrency", target, "concurrency is missing: no gateway worker reported it")
    stable, short = scene.stable, scene.short
    flying = window.level(stable.in_flight, stable.loaded, short.in_flight, short.loaded)
    both = window.level(stable.in_flight + stable.queued, stable.loaded, short.in_flight + short.queued, short.loaded)
    up = flying.value / target
    down = max(up, both.value / target)
    words = ""
    if down > up and scene.unabsorbed:
        up = max(up, min(down, 2.0 * scene.current))
    elif down > up:
        words = ", the queue being served by replicas there or to come,"
    note = f"{both.value:.1f} requests in flight and queued {_over(both)} at {target:g} per replica{words}"
    return _say("concurrency", both.value, target, up, down, scene.current, note)


def _resource(metric: MetricTarget, scene: Scene) -> Say:
    name, target, words = metric.name, metric.target, _RESOURCE_WORDS[metric.name]
    latest = {
        "cpu": scene.sample.cpu,
        "memory": scene.sample.memory,
        "deviceMemory": scene.sample.device_memory,
    }[name]  # fmt: skip
    if scene.supply.ready == 0:
        return Say(SignalReading(name, None, target, None, f"{words}: no replica is ready yet"), 0.0, 0.0)
    usage = window.usage(scene.state.spans, scene.now, name) if latest else None
    if usage is None:
        return _missing(name, target, f"{words} is missing: of {scene.supply.ready} ready replicas none was measured")
    up = usage.total / target
    down = (usage.total + usage.missing * max(100.0, target)) / target
    if usage.mean > target:
        down = math.inf
    seen = f"{usage.measured} of {usage.measured + usage.missing}" if usage.missing else f"{usage.measured}"
    note = f"{words} at {usage.mean:.0f} percent (mean of {seen} ready) at a target of {target:g} percent"
    return _say(name, usage.mean, target, up, down, scene.current, note)


def _external(metric: ExternalTarget, scene: Scene) -> Say:
    name, target, ready = metric.name, metric.target, scene.supply.ready
    known = next((e for e in scene.sample.external if e.name == name), None)
    if known is None or known.value is None:
        return _missing(name, target, f"{name} is missing: {known.note if known else 'nobody measured it'}")
    value = known.value
    # Whatever nonsense somebody else measures, the count stays a number.
    factor = min(max(0.0, value) / target, _MOST_FACTOR)
    if metric.type == "AverageValue":
        need = factor
        return _say(name, value, target, need, need, scene.current, f"{name} at {value:.3g} at {target:g} per replica")
    if ready == 0:
        return Say(SignalReading(name, value, target, None, f"{name}: no replica is ready yet"), 0.0, 0.0)
    up = down = factor * ready
    if value > target:
        # How far the replicas that are still to come lower it is not known yet.
        down = math.inf
    note = f"{name} at {value:.3g} with {ready} ready at a target of {target:g}"
    return _say(name, value, target, up, down, scene.current, note)


def _queue(scene: Scene) -> Say:
    queued = scene.queued
    if scene.sample.arrivals is None or queued is None:
        return Say(SignalReading("queue", None, 0.0, None, "queue length is missing"), 0.0, 0.0)
    stable, current = scene.stable, scene.current
    if not scene.backlog:
        return _no_backlog(queued, scene)
    note = f"{queued:.1f} requests queued"
    if not scene.unabsorbed:
        note += f": the replicas there or to come will serve them, keep {current}"
        return Say(SignalReading("queue", queued, 0.0, current, note), 0.0, math.inf)
    if stable.completions:
        served = stable.completions / stable.worked
        carried = served / scene.supply.ready
        arriving = stable.arrivals / stable.covered
        need = min((arriving + queued / DRAIN_S) / carried, 2.0 * current)
        note += f" and not falling, {served:.1f} of {arriving:.1f} requests/s served by {scene.supply.ready} ready,"
    else:
        need = current + 1.0
        note += " and not falling,"
    return _say("queue", queued, 0.0, need, math.inf, current, note)


def _no_backlog(queued: float, scene: Scene) -> Say:
    note = f"{queued:.1f} requests queued: no backlog"
    known = scene.carried
    if known is None:
        return Say(SignalReading("queue", queued, 0.0, 0, note), 0.0, 0.0)
    need = scene.rate.value / known[0]
    ago = scene.now - known[1]
    note += f", but {known[0]:.1f} requests/s a replica were too many {ago:.0f} s ago,"
    return _say("queue", queued, 0.0, 0.0, need, scene.current, note)
