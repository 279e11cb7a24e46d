"""What goes wrong in production, each as a run with a figure: wrong targets, drift, faults, timers, steps, a full
fleet."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoscaler.baselines import Kpa
from autoscaler.defaults import behavior
from autoscaler.oracle import reference
from autoscaler.policy import recommend
from autoscaler.replay import Ours
from autoscaler.simulate import Faults, Outcome, Requests, Starts, View, Workload, draw, simulate
from autoscaler.state import State
from autoscaler.trace import Trace
from autoscaler.types import Sample, ScalingPolicy, Supply
from benchmarks.autoscaler.cells import CASES, load

LEARNING_S = 60
"""Not counted where something has to be learned first."""


def policy(work: Workload, **changes: Any) -> ScalingPolicy:
    """The one default configuration: the target is what a replica can do, nothing else is set."""
    base = ScalingPolicy(
        min_replicas=1,
        max_replicas=1000,
        target_qps=work.capacity,
        mode="honour",
        metrics=(),
        behavior=behavior(),
        idle_s=90.0,
        concurrency_limit=work.slots,
    )
    return replace(base, **changes)


def first_replicas(work: Workload) -> int:
    """What a run begins with: enough for the first minute at 70 percent."""
    bins = max(1, round(60.0 / work.trace.bin_s))
    rate = sum(work.trace.counts[:bins]) / bins / work.trace.bin_s
    return max(1, math.ceil(rate / work.capacity / 0.7))


def run(work: Workload, requests: Requests, scaler: Callable[[View], int], start_s: float, **options: Any) -> Outcome:
    """One run with starts of `start_s` seconds."""
    given = {"first": first_replicas(work), **options}
    starts = given.pop("starts", Starts(start_s))
    boost = scaler.boost if isinstance(scaler, Ours) else None
    return simulate(work, requests, scaler, starts, np.random.default_rng(2), boost=boost, **given)


def late_percent(outcome: Outcome, after_s: int) -> float:
    """Violations among the requests that came after `after_s`."""
    arrived = sum(outcome.series.arrivals[after_s:])
    return 100.0 * sum(outcome.series.late[after_s:]) / max(1, arrived)


@dataclass(frozen=True)
class Bar:
    value: Any
    bar: str
    met: bool


def _workloads(data: Path, *, quick: bool) -> list[Workload]:
    conv = load("conv", data)
    if quick:
        return [conv]
    sgl = load("sgl", data)
    return [conv, replace(sgl, trace=sgl.trace.part(1080, 2160))]


def wrong_targets(data: Path, seed: int, *, quick: bool) -> dict[str, Bar]:
    """Targets that are wrong or absent; starts of 30 s."""
    start_s = 30.0
    kinds: dict[str, Callable[[Workload], ScalingPolicy]] = {
        "honour 1.5x": lambda w: policy(w, target_qps=1.5 * w.capacity),
        "honour 2x": lambda w: policy(w, target_qps=2.0 * w.capacity),
        "learn 0.5x": lambda w: policy(w, mode="learn", target_qps=0.5 * w.capacity),
        "learn 2x": lambda w: policy(w, mode="learn", target_qps=2.0 * w.capacity),
        "absent": lambda w: policy(w, mode="learn", target_qps=None),
    }
    bars: dict[str, Bar] = {}
    known: dict[Any, float] = {}
    for kind, make in kinds.items():
        late: list[float] = []
        cost: list[float] = []
        for work in _workloads(data, quick=quick):
            requests = draw(work, np.random.default_rng(seed))
            best_cost = _reference(work, requests, start_s, known, quick=quick)
            outcome = run(work, requests, Ours(make(work), start_s), start_s)
            late.append(late_percent(outcome, LEARNING_S))
            cost.append(outcome.cost / best_cost)
        value = {"violations": round(max(late), 2), "cost": round(max(cost), 3)}
        bars[f"target: {kind}"] = Bar(value, "<= 1% at <= 1.4x", max(late) <= 1.0 and max(cost) <= 1.4)
    return bars


def drift(data: Path, seed: int, *, quick: bool) -> dict[str, Bar]:
    """The true capacity falls by 1.8x for a third of the run; starts of 30 s.

    `floor` is what nobody could have avoided who has our replicas when it falls: violations of one who is told at the
    fall, or so many seconds later, orders without regard to cost, and gets what was ordered a start later.
    """
    start_s = 30.0
    bars: dict[str, Bar] = {}
    slowest = 0.0
    sgl = load("sgl", data)
    hour = replace(sgl, name="sgl, one hour", trace=sgl.trace.part(1080, 1440))
    for calm in [*_workloads(data, quick=quick), *([] if quick else [hour])]:
        begins = calm.trace.seconds / 3.0
        work = replace(calm, slowdowns=((begins, 2.0 * begins, 1.8),))
        requests = draw(work, np.random.default_rng(seed))
        scaler, found = Ours(policy(work), start_s), [math.inf]

        def watch(view: View, scaler: Ours = scaler, begins: float = begins, found: list[float] = found) -> int:
            count = scaler(view)
            at = scaler.state.learned.drifted_at
            if at is not None and at >= begins:
                found[0] = min(found[0], at - begins)
            return count

        outcome = run(work, requests, watch, start_s)
        late = late_percent(outcome, LEARNING_S)
        cost = outcome.cost / _reference(work, requests, start_s, {}, quick=quick)
        slowest = max(slowest, found[0])
        value = {"violations": round(late, 2), "cost": round(cost, 3), "found, s": round(found[0], 1)}
        value |= {
            f"floor if told after {told} s": round(_told(work, requests, start_s, begins + told), 2)
            for told in (() if quick else (0, 5, 60))
        }
        bars[f"drift 1.8x ({calm.name})"] = Bar(value, "<= 1% at <= 1.4x", late <= 1.0 and cost <= 1.4)
    return bars | {"drift found, s": Bar(round(slowest, 1), "<= 60", slowest <= 60.0)}


def _told(work: Workload, requests: Requests, start_s: float, told_at: float) -> float:
    """Violations, percent, of one who notices nothing until `told_at` and then orders three times the replicas."""
    scaler, most, held = Ours(policy(work), start_s), [0], [0]
    begins = work.slowdowns[0][0]

    def order(view: View) -> int:
        count = scaler(view)
        if view.now < begins:
            held[0] = count
        elif view.now < told_at:
            return held[0]
        if told_at <= view.now < told_at + 2.0 * start_s:
            most[0] = most[0] or 3 * view.supply.ready
            return max(count, most[0])
        return count

    return late_percent(run(work, requests, order, start_s), LEARNING_S)


def _reference(work: Workload, requests: Requests, start_s: float, known: dict[Any, float], *, quick: bool) -> float:
    """The cheaper of our own reference and, where the workload is a whole cell, the one measured for it elsewhere."""
    key = (work.name, work.slowdowns)
    if key not in known:
        known[key] = reference(work, requests, start_s, np.random.default_rng(2), few=quick).cost
        if work.name == "conv" and not work.slowdowns:
            known[key] = min(known[key], CASES["conv"].reference[int(start_s)])
    return known[key]


def faults(data: Path, seed: int, *, quick: bool) -> dict[str, Bar]:
    """Faults in the middle of a run; starts of 30 s."""
    start_s = 30.0
    bars: dict[str, Bar] = {}
    for work in _workloads(data, quick=quick):
        requests = draw(work, np.random.default_rng(seed))
        best = reference(work, requests, start_s, np.random.default_rng(2), few=quick)
        middle = round(work.trace.seconds / 2)
        span = (float(middle), middle + 300.0)
        room = max(2, best.peak)
        kinds: dict[str, dict[str, Any]] = {
            "blackout": {"faults": Faults(blackouts=(span,))},
            "zeros": {"faults": Faults(zeros=(span,))},
            "failing starts": {"starts": Starts(start_s, failing=0.2)},
            "slow starts": {"starts": Starts(start_s, 0.5, 3.0)},
            "no room": {"faults": Faults(room=room)},
            "unready": {"faults": Faults(unready=((float(middle), middle + 60.0),))},
            "restart": {"faults": Faults(restarts=(float(middle), middle + 30.0))},
        }
        for kind, options in kinds.items():
            outcome = run(work, requests, Ours(policy(work), start_s), start_s, **options)
            longest = options["starts"].most * start_s if "starts" in options else start_s
            end = int({"unready": middle + 60, "restart": middle + 35}.get(kind, span[1]))
            recovered = _recovered(outcome, work, end + 1 + round(longest))
            value = {
                "shrank on bad data": outcome.last_shrink_on_bad_data is not None,
                "peak over the reference's": round(outcome.peak / best.peak, 2),
                "recovered": recovered,
                "violations": round(outcome.violation_share, 2),
            }
            met = outcome.last_shrink_on_bad_data is None and outcome.peak <= 1.5 * best.peak and recovered
            bars[f"fault: {kind} ({work.name})"] = Bar(value, "no shrink on bad data, peak <= 1.5x, recovered", met)
    return bars


def _recovered(outcome: Outcome, work: Workload, by: int) -> bool:
    """Whether, one start and one tick after the fault, ready replicas carry what comes (mean of half a minute)."""
    rate = sum(outcome.series.arrivals[by - 30 : by]) / 30.0
    return outcome.series.ready[by] >= rate / work.capacity


def step(seed: int, *, quick: bool) -> dict[str, Bar]:
    """A step of three times the rate at starts of 90 s, slices allowed to grow to three times; growth is charged."""
    work = Workload("step", Trace(60.0, (100 * 60.0,) * 20 + (300 * 60.0,) * 40), 8, 0.5, 0.5, 1.0)
    requests = draw(work, np.random.default_rng(seed))
    best = reference(work, requests, 90.0, np.random.default_rng(2), few=quick)
    outcome = run(work, requests, Ours(policy(work, max_boost=3.0), 90.0), 90.0)
    value = {"violations": round(outcome.violation_share, 2), "cost": round(outcome.cost / best.cost, 3)}
    met = outcome.violation_share <= 1.0 and outcome.cost <= 1.15 * best.cost
    return {"step with vertical burst": Bar(value, "<= 1% at <= 1.15x, growth charged while used", met)}


def timers(seed: int, *, quick: bool) -> dict[str, Bar]:
    """Bursts every 5, 30 and 60 min, give or take 10 s, of 20 requests in 10 s; starts of 20 s; scale to zero."""
    bars: dict[str, Bar] = {}
    rng = np.random.default_rng(seed)
    for minutes, hours in ((5, 24), (30, 96), (60, 168)):
        if quick and minutes > 5:
            continue
        counts = np.zeros(hours * 360)
        for k in range(hours * 60 // minutes - 1):
            counts[int((k + 0.5) * minutes * 6 + rng.uniform(-1.0, 1.0))] += 20.0
        counts = counts[: 16 * 360] if quick else counts
        work = Workload(f"every {minutes} min", Trace(10.0, tuple(counts.tolist())), 4, 1.0, 0.5, 1.0)
        requests = draw(work, np.random.default_rng(seed))
        outcome = run(work, requests, Ours(policy(work, min_replicas=0), 20.0), 20.0, first=0, least=0)
        cost = outcome.cost / outcome.seconds
        value = {"violations": round(outcome.violation_share, 2), "cost": round(cost, 3)}
        met = outcome.violation_share <= 2.0 and cost <= 0.65
        bars[f"timer: {work.name}"] = Bar(value, "<= 2% at <= 0.65x of one always on", met)
    hours = 6 if quick else 24
    sparse = rng.poisson(0.5, hours * 60).astype(float)
    work = Workload("aperiodic", Trace(60.0, tuple(sparse.tolist())), 4, 1.0, 0.5, 1.0)
    requests = draw(work, np.random.default_rng(seed))
    ours = run(work, requests, Ours(policy(work, min_replicas=0), 20.0), 20.0, first=0, least=0)
    kpa = run(work, requests, _ToZero(Kpa(0.7 * work.capacity, "rps")), 20.0, first=0, least=0)
    value = {
        "ours": [round(ours.cost / ours.seconds, 3), round(ours.violation_share, 2)],
        "kpa": [round(kpa.cost / kpa.seconds, 3), round(kpa.violation_share, 2)],
    }
    is_as_good = ours.violation_share <= kpa.violation_share + 1.0 and ours.cost <= 1.03 * kpa.cost
    bars["timer: aperiodic"] = Bar(value, "no worse than KPA in either (by a point, by 3 percent)", is_as_good)
    return bars


class _ToZero:
    """Knative's way to zero: nothing in the stable window (60 s), then 30 s of grace; one request wakes one."""

    def __init__(self, inner: Kpa) -> None:
        self._inner, self._quiet_from = inner, 0.0

    def __call__(self, view: View) -> int:
        sample = view.sample
        if sample.arrivals or sample.queued_now or sample.in_flight:
            self._quiet_from = view.now
        if view.now - self._quiet_from >= 90.0:
            return 0
        return self._inner(view)


def thousand_models(*, quick: bool) -> dict[str, Bar]:
    """1,000 models, each with traffic of its own, a call each second: the median tick, and the largest memory.

    CPU time of this process, so that what else runs on the machine does not count.
    """
    rng = np.random.default_rng(1)
    work = Workload("any", Trace(1.0, (1.0,)), 8, 0.4, 0.5, 1.0)
    wanted = policy(work)
    models = 1000
    states = [State.initial(0.0, i / models) for i in range(models)]
    rates = rng.uniform(1.0, 60.0, models)
    ticks: list[float] = []
    for second in range(1, 61 if quick else 141):
        arrivals = rng.poisson(rates).tolist()
        samples = [Sample(1.0, n, n, n * 0.4, 0.0) for n in arrivals]
        supplies = [Supply(max(1, math.ceil(r / 14)), 0, 0) for r in rates]
        begun = time.process_time()
        for i in range(models):
            _, states[i] = recommend(wanted, supplies[i], samples[i], states[i], float(second))
        ticks.append(time.process_time() - begun)
    usual = sorted(ticks[40:])[len(ticks[40:]) // 2] * 1000.0
    largest = max(_bytes(state) for state in states[:20]) / 1024.0
    return {
        "1,000 models a tick, ms": Bar(round(usual, 1), "< 100", usual < 100.0),
        "memory a model, KiB": Bar(round(largest, 1), "< 64", largest < 64.0),
    }


def _bytes(value: Any) -> int:
    import sys

    parts = value if isinstance(value, tuple) else ()
    if hasattr(value, "__dataclass_fields__"):
        parts = tuple(getattr(value, name) for name in value.__dataclass_fields__)
    return sys.getsizeof(value) + sum(map(_bytes, parts))
