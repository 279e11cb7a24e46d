"""From the workers' cumulative counters to Demand: what the gateway measured for a Model since it was last asked.

A worker's counters only grow within its epoch, so a difference of two reports is exact however many were lost between
them. A worker that is new to us starts from zero if it began after we did, else its first report is only a baseline.
A worker that is silent for longer than STALE_S makes the demand unknown, never smaller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.wire import LATENCY_BOUNDS, EndpointCounters, ModelCounters, Report

STALE_S: Final = 3.5
#: Seconds of history behind the rates and percentiles that people are shown.
SHOWN_S: Final = 10.0
LATENCY_SHOWN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one model, since it was last taken. `dt` is the seconds covered; figures are None when unknown."""

    dt: float
    arrivals: int | None
    completions: int | None = None
    in_flight: float | None = None
    """Mean over dt."""
    queued: float | None = None
    """Mean over dt."""
    queued_now: int = 0
    in_flight_now: int = 0


@dataclass(slots=True)
class _Totals:
    arrivals: int = 0
    completions: int = 0
    in_flight_s: float = 0.0
    queued_s: float = 0.0


@dataclass(slots=True)
class _History:
    """Increments of one model, one entry a take: (time, dt, arrivals, bucket increments)."""

    entries: deque[tuple[float, float, int, tuple[int, ...]]] = field(default_factory=deque)


@dataclass(slots=True)
class _Worker:
    epoch: str
    uptime_s: float
    heard_at: float
    models: dict[str, ModelCounters]


class DemandTracker:
    """Takes reports in, gives Demand out. `started_at` and `now` are on the same monotonic clock."""

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._workers: dict[int, _Worker] = {}
        self._pending: dict[str, _Totals] = {}
        self._buckets: dict[str, list[int]] = {}
        self._covered: dict[int, float] = {}
        self._history: dict[str, _History] = {}
        self._dt = 0.0
        self._known = False

    def report(self, report: Report, now: float) -> None:
        """Take one report in."""
        worker = self._workers.get(report.worker)
        if worker is None or worker.epoch != report.epoch:
            since_we_began = report.uptime_s <= now - self._started_at
            worker = _Worker(
                report.epoch,
                uptime_s=0.0 if since_we_began else report.uptime_s,
                heard_at=now,
                models={} if since_we_began else {m.name: m for m in report.models},
            )
            self._workers[report.worker] = worker
        elapsed = max(0.0, report.uptime_s - worker.uptime_s)
        self._covered[report.worker] = self._covered.get(report.worker, 0.0) + elapsed
        worker.uptime_s, worker.heard_at = report.uptime_s, now
        for counters in report.models:
            self._add(counters, worker.models.get(counters.name) or ModelCounters(name=counters.name))
            worker.models[counters.name] = counters

    def _add(self, new: ModelCounters, old: ModelCounters) -> None:
        totals = self._pending.setdefault(new.name, _Totals())
        totals.arrivals += max(0, new.arrivals - old.arrivals)
        totals.completions += max(0, new.completions - old.completions)
        totals.in_flight_s += max(0.0, new.in_flight_s - old.in_flight_s)
        totals.queued_s += max(0.0, new.queued_s - old.queued_s)
        if new.latency_buckets:
            buckets = self._buckets.setdefault(new.name, [0] * (len(LATENCY_BOUNDS) + 1))
            before = old.latency_buckets or (0,) * len(buckets)
            for i, (a, b) in enumerate(zip(new.latency_buckets, before, strict=True)):
                buckets[i] += max(0, a - b)

    def gone(self, worker: int) -> None:
        """A worker's process has ended: nothing of it is in flight, and its silence means nothing."""
        self._workers.pop(worker, None)
        self._covered.pop(worker, None)

    def begin(self, now: float) -> None:
        """Close the period: `take` then gives each model's figures of it."""
        covered = [t for w, t in self._covered.items() if w in self._workers]
        self._dt = sum(covered) / len(covered) if covered else 0.0
        self._covered.clear()
        self._known = bool(self._workers) and all(now - w.heard_at <= STALE_S for w in self._workers.values())

    def take(self, model: str, now: float) -> Demand:
        """Figures of the period that `begin` closed; call once a model and period."""
        totals = self._pending.pop(model, None) or _Totals()
        buckets = tuple(self._buckets.pop(model, ()))
        queued_now = sum(w.models[model].queued for w in self._workers.values() if model in w.models)
        in_flight_now = self.in_flight(model)
        history = self._history.setdefault(model, _History()).entries
        if self._known and self._dt > 0:
            history.append((now, self._dt, totals.arrivals, buckets))
        while history and now - history[0][0] > LATENCY_SHOWN_S:
            history.popleft()
        if not self._known:
            return Demand(dt=self._dt, arrivals=None, queued_now=queued_now, in_flight_now=in_flight_now)
        if self._dt <= 0:
            self._pending[model] = totals
            return Demand(dt=0.0, arrivals=0, queued_now=queued_now, in_flight_now=in_flight_now)
        return Demand(
            dt=self._dt,
            arrivals=totals.arrivals,
            completions=totals.completions,
            in_flight=totals.in_flight_s / self._dt,
            queued=totals.queued_s / self._dt,
            queued_now=queued_now,
            in_flight_now=in_flight_now,
        )

    def forget(self, model: str) -> None:
        """Drop the history of a model that was deleted."""
        self._history.pop(model, None)
        self._pending.pop(model, None)
        self._buckets.pop(model, None)

    # --- what people are shown ---

    def qps(self, model: str, now: float) -> float | None:
        """Arrivals in requests per second over the last SHOWN_S; None before anything is known."""
        entries = [e for e in self._history[model].entries if now - e[0] < SHOWN_S] if model in self._history else []
        seconds = sum(e[1] for e in entries)
        return sum(e[2] for e in entries) / seconds if seconds > 0 else None

    def latency_s(self, model: str, quantiles: Sequence[float]) -> list[float | None]:
        """Quantiles (0 to 1) of seconds to the end of the answer over LATENCY_SHOWN_S, interpolated within buckets."""
        history = self._history.get(model)
        totals = [0] * (len(LATENCY_BOUNDS) + 1)
        for entry in history.entries if history else ():
            for i, n in enumerate(entry[3]):
                totals[i] += n
        return [quantile(totals, q) for q in quantiles]

    def in_flight(self, model: str) -> int:
        """Requests of the model in flight to replicas now, over all workers."""
        return sum(w.models[model].in_flight for w in self._workers.values() if model in w.models)

    def queued(self, model: str) -> int:
        """Requests of the model waiting now, over all workers."""
        return sum(w.models[model].queued for w in self._workers.values() if model in w.models)

    def replica_in_flight(self, model: str, replica: str) -> int:
        """Requests in flight to one replica now, over all workers."""
        return sum(e.in_flight for e in self._endpoints(model) if e.id == replica)

    def ejections(self, model: str) -> dict[str, str]:
        """Replica -> why gateway workers give it nothing new at present; replicas that get requests are left out."""
        reasons: dict[str, list[str]] = {}
        for endpoint in self._endpoints(model):
            if endpoint.ejected:
                reasons.setdefault(endpoint.id, []).append(endpoint.ejected)
        workers = len(self._workers)
        return {
            replica: ", ".join(sorted(set(why))) + (f" (in {len(why)} of {workers} workers)" if workers > 1 else "")
            for replica, why in reasons.items()
        }

    def _endpoints(self, model: str) -> Iterable[EndpointCounters]:
        for worker in self._workers.values():
            if model in worker.models:
                yield from worker.models[model].endpoints


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """The q-quantile (0 to 1), in seconds, of counts per bucket of LATENCY_BOUNDS; None where there are none."""
    total = sum(buckets)
    if not total:
        return None
    rank = q * total
    seen = 0
    for i, count in enumerate(buckets):
        if count and seen + count >= rank:
            low = LATENCY_BOUNDS[i - 1] if i else 0.0
            high = LATENCY_BOUNDS[i] if i < len(LATENCY_BOUNDS) else LATENCY_BOUNDS[-1]
            return low + (high - low) * (rank - seen) / count
        seen += count
    return LATENCY_BOUNDS[-1]
