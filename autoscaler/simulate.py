"""One model under a trace on virtual time: requests, slots, cold starts and faults, a scaler asked every second.

Arrivals are Poisson within each bin. A replica has `slots`; a request takes a slot for a lognormal service time. What
finds no slot waits in one queue, first come first served, and leaves after the timeout. Since all requests wait
equally long at most, what waits is always a run of neighbours in arrival order, and the whole queue is two indexes.

The slots of all ready replicas are one heap of the times at which they become free (Kiefer and Wolfowitz, 1955). With
requests going to the least busy replica all are equally busy but for one, so a replica that is drained takes its
share of what runs, drawn at random, and costs until the last of that is done.

A tick: starts that are over become ready; the scaler sees what was measured and says how many; the count is changed (a
drain is undone before a cold start is begun, starting replicas go before ready ones); then a second passes.
Costs are replica-seconds, starting and draining ones counted. Of what a fault hides the scaler learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator as Steps
from dataclasses import dataclass, field
from heapq import heapify, heappush, heapreplace
from typing import TYPE_CHECKING, NamedTuple, cast

from autoscaler.trace import Trace
from autoscaler.types import Sample, Supply

if TYPE_CHECKING:
    from numpy.random import Generator

_NEVER = float("inf")
Interval = tuple[float, float]
"""Seconds from the start of the run: from, to."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A trace and what it asks of a replica."""

    name: str
    trace: Trace
    slots: int
    service_s: float
    """Mean service time."""
    service_cv: float
    slo_s: float
    """A longer wait is a violation."""
    timeout_s: float = 60.0
    slowdowns: tuple[tuple[float, float, float], ...] = ()
    """(from, to, factor): requests that start then take so many times as long."""

    @property
    def capacity(self) -> float:
        """Requests per second that one replica can do."""
        return self.slots / self.service_s


@dataclass(frozen=True, slots=True)
class Starts:
    """How cold starts go."""

    seconds: float
    least: float = 1.0
    most: float = 1.0
    """A start takes `seconds` times a factor drawn evenly between these."""
    failing: float = 0.0
    """Share of starts that end, after their time, in a failure; the replica is started again."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong and when."""

    blackouts: tuple[Interval, ...] = ()
    """No report arrives."""
    zeros: tuple[Interval, ...] = ()
    """Every metric reads 0."""
    unready: tuple[Interval, ...] = ()
    """No replica is ready; those that are there count as starting."""
    restarts: tuple[float, ...] = ()
    """The controller starts anew and has forgotten all; it is away for `away_s`."""
    away_s: float = 5.0
    room: int | None = None
    """No more replicas fit."""


class View(NamedTuple):
    """What a scaler sees at a tick."""

    now: float
    sample: Sample
    supply: Supply
    slots: int


Scaler = Callable[[View], int]
"""Says how many replicas there should be. One that forgets at a controller's restart has a method `restart(now)`."""


@dataclass(slots=True)
class Series:
    """Per second: what the plot shows."""

    arrivals: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)
    """Violations, by the second of arrival."""
    ready: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    """Starting, ready and draining."""
    wanted: list[int] = field(default_factory=list)
    queued: list[int] = field(default_factory=list)
    boost: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """A run in figures."""

    requests: int
    violations: int
    timeouts: int
    cost: float
    """Replica-seconds."""
    cold_starts: int
    peak: int
    seconds: int
    series: Series
    last_shrink_on_bad_data: float | None = None
    """When the count last fell while a fault hid the truth."""

    @property
    def violation_share(self) -> float:
        """Of all requests, percent."""
        return 100.0 * self.violations / max(1, self.requests)


@dataclass(slots=True)
class _Draining:
    end: float
    finishes: list[float]


class Requests(NamedTuple):
    """Arrival times and service times, drawn once and used for any number of scalers."""

    at: list[float]
    service_s: list[float]


def draw(workload: Workload, rng: Generator) -> Requests:
    """Arrivals and services of one seeded run."""
    import numpy as np

    trace = workload.trace
    counts = rng.poisson(np.asarray(trace.counts))
    starts = np.repeat(np.arange(len(counts)) * trace.bin_s, counts)
    at = np.sort(starts + rng.random(len(starts)) * trace.bin_s)
    spread = np.log1p(workload.service_cv**2)
    service = rng.lognormal(np.log(workload.service_s) - spread / 2, np.sqrt(spread), len(at))
    for begin, end, factor in workload.slowdowns:
        service[(at >= begin) & (at < end)] *= factor
    return Requests(at.tolist(), service.tolist())


def simulate(
    workload: Workload,
    requests: Requests,
    scaler: Scaler,
    starts: Starts,
    rng: Generator,
    *,
    first: int = 1,
    least: int = 1,
    most: int = 10_000,
    faults: Faults = Faults(),
    boost: Callable[[], float] | None = None,
) -> Outcome:
    """Run the workload once. `first` replicas are ready at the beginning; counts are held within least and most.

    `boost` says, after each question, how many times the compute of a slice each replica has now (vertical growth).
    """
    run = Run(workload, requests, starts, rng, first, least, most, faults, boost)
    steps = run.steps(getattr(scaler, "restart", None))
    try:
        view = next(steps)
        while True:
            view = steps.send(scaler(view))
    except StopIteration as over:
        return cast(Outcome, over.value)


class Run:
    """One model's run, a tick at a time."""

    def __init__(
        self,
        workload: Workload,
        requests: Requests,
        starts: Starts,
        rng: Generator,
        first: int,
        least: int,
        most: int,
        faults: Faults,
        boost: Callable[[], float] | None,
    ) -> None:
        self._work, self._requests = workload, requests
        self._starts, self._rng, self._faults, self._boost = starts, rng, faults, boost
        self._least, self._most = least, most
        self._ready = first
        # The last entry stands for "no slot": it is never free.
        self._heap: list[float] = [*([0.0] * (first * workload.slots)), _NEVER]
        self._starting: list[float] = []
        self._draining: list[_Draining] = []
        self._hidden: tuple[int, list[float]] | None = None
        self._wanted = first
        self._cold_starts = 0
        self._begun = 0
        """Requests that left the queue, by index: those before it have started or timed out."""
        self._served = 0
        self._speed = 1.0
        self._service_done = self._wait_done = 0.0
        self._late: list[int] = []
        self._timeouts = 0

    def steps(self, restart: Callable[[float], None] | None = None) -> Steps[View, int, Outcome]:
        """Yields what is seen at each tick and is sent the count; returns the outcome."""
        import numpy as np

        work, at = self._work, self._requests.at
        seconds = round(work.trace.seconds)
        arrived = np.searchsorted(np.asarray(at), np.arange(seconds + 1)).tolist()
        summed = np.concatenate(([0.0], np.cumsum(np.asarray(at)))).tolist()
        series = Series()
        cost, peak = 0.0, 0
        completed = flying_s = waiting_s = 0.0
        reported = 0
        """Arrivals up to the last report that got through."""
        bad_shrink: float | None = None
        away_until = -1.0
        sample = Sample(dt=0.0, arrivals=0, completions=0, in_flight=0.0, queued=0.0)
        for tick in range(seconds):
            now = float(tick)
            self._settle(now)
            if tick:
                busy, left = self._busy(now)
                begun, here = self._begun, arrived[tick]
                done = self._served - busy
                flown = self._service_done - left
                waited = self._wait_done + (here - begun) * now - (summed[here] - summed[begun])
                sample = Sample(
                    dt=1.0,
                    arrivals=here - reported,
                    completions=int(done - completed),
                    in_flight=max(0.0, flown - flying_s),
                    queued=max(0.0, waited - waiting_s),
                    queued_now=here - begun,
                    wake=here > begun and self._ready == 0,
                )
                reported, completed, flying_s, waiting_s = here, done, flown, waited
            hidden = _within(self._faults.blackouts, now)
            zero = _within(self._faults.zeros, now)
            if hidden:
                sample = Sample(dt=1.0, arrivals=None)
            elif zero:
                sample = Sample(dt=1.0, arrivals=0, completions=0, in_flight=0.0, queued=0.0)
            if now in self._faults.restarts:
                away_until = now + self._faults.away_s
                if restart is not None:
                    restart(away_until)
            if now >= away_until:
                supply = Supply(
                    self._ready, len(self._starting) + (self._hidden[0] if self._hidden else 0), len(self._draining)
                )
                wanted = yield View(now, sample, supply, work.slots)
                wanted = min(max(wanted, self._least), self._most)
                if wanted < self._wanted and (hidden or zero):
                    bad_shrink = now
                self._wanted = wanted
                if self._boost is not None:
                    self._speed = self._boost()
            self._carry_out(now)
            total = self._ready + len(self._starting) + len(self._draining)
            total += self._hidden[0] if self._hidden else 0
            cost += total + self._ready * (self._speed - 1.0)
            peak = max(peak, total)
            series.arrivals.append(arrived[tick + 1] - arrived[tick])
            series.ready.append(self._ready)
            series.total.append(total)
            series.wanted.append(self._wanted)
            series.boost.append(self._speed)
            series.queued.append(arrived[tick + 1] - self._begun)
            self._pass(now + 1.0, arrived[tick + 1])
        late = np.bincount(np.asarray(at)[self._late].astype(int), minlength=seconds) if self._late else [0] * seconds
        series.late = [int(n) for n in late]
        # What still waits at the end and has waited too long already is late too.
        violations = len(self._late) + sum(seconds - t > work.slo_s for t in at[self._begun : arrived[seconds]])
        return Outcome(
            requests=arrived[seconds],
            violations=violations,
            timeouts=self._timeouts,
            cost=cost,
            cold_starts=self._cold_starts,
            peak=peak,
            seconds=seconds,
            series=series,
            last_shrink_on_bad_data=bad_shrink,
        )

    def _settle(self, now: float) -> None:
        if self._starting and min(self._starting) <= now:
            over = [t for t in self._starting if t <= now]
            self._starting = [t for t in self._starting if t > now]
            for _ in over:
                if self._starts.failing and self._rng.random() < self._starts.failing:
                    self._starting.append(now + self._start_s())
                else:
                    self._ready += 1
                    self._add_slots([now] * self._work.slots)
        if self._draining:
            self._draining = [d for d in self._draining if d.end > now]
        unready = _within(self._faults.unready, now)
        if unready and self._hidden is None:
            self._hidden = (self._ready, [f for f in self._heap if f != _NEVER])
            self._ready, self._heap = 0, [_NEVER]
        elif not unready and self._hidden is not None:
            self._ready += self._hidden[0]
            self._add_slots([max(f, now) for f in self._hidden[1]])
            self._hidden = None

    def _add_slots(self, free_at: list[float]) -> None:
        for at in free_at:
            heappush(self._heap, at)

    def _start_s(self) -> float:
        starts = self._starts
        if starts.least == starts.most:
            return starts.seconds
        return starts.seconds * float(self._rng.uniform(starts.least, starts.most))

    def _busy(self, now: float) -> tuple[int, float]:
        """Requests in service and the seconds of service that they still have."""
        busy = [f for f in self._heap if now < f < _NEVER]
        for draining in self._draining:
            busy += [f for f in draining.finishes if f > now]
        if self._hidden:
            busy += [f for f in self._hidden[1] if f > now]
        return len(busy), sum(busy) - now * len(busy)

    def _carry_out(self, now: float) -> None:
        there = self._ready + len(self._starting) + (self._hidden[0] if self._hidden else 0)
        wanted = self._wanted
        while there < wanted and self._draining:
            back = self._draining.pop()
            self._ready += 1
            there += 1
            idle = self._work.slots - len(back.finishes)
            self._add_slots([*back.finishes, *([now] * idle)])
        room = self._faults.room
        while there < wanted and (room is None or there + len(self._draining) < room):
            self._starting.append(now + self._start_s())
            self._cold_starts += 1
            there += 1
        while there > wanted and self._starting:
            self._starting.remove(max(self._starting))
            there -= 1
        while there > wanted and self._ready:
            self._drain(now)
            there -= 1

    def _drain(self, now: float) -> None:
        busy = [f for f in self._heap if now < f < _NEVER]
        mine = len(busy) // self._ready
        taken = [busy[int(i)] for i in self._rng.permutation(len(busy))[:mine]] if mine else []
        for finish in taken:
            busy.remove(finish)
        self._ready -= 1
        idle = self._ready * self._work.slots - len(busy)
        self._heap = [*busy, *([now] * idle), _NEVER]
        heapify(self._heap)
        if taken:
            self._draining.append(_Draining(max(taken), taken))

    def _pass(self, end: float, arrived: int) -> None:
        """Requests that start before `end`."""
        at, service = self._requests
        heap, late, speed = self._heap, self._late, self._speed
        slo, timeout = self._work.slo_s, self._work.timeout_s
        i = self._begun
        while i < arrived:
            came = at[i]
            start = heap[0]
            if start <= came:
                # The common case: a slot is free.
                took = service[i] / speed
                heapreplace(heap, came + took)
                self._service_done += took
                self._served += 1
                i += 1
                continue
            if start - came > timeout:
                if end - came <= timeout:
                    break
                late.append(i)
                self._timeouts += 1
                self._wait_done += timeout
                i += 1
                continue
            if start >= end:
                break
            wait = start - came
            took = service[i] / speed
            heapreplace(heap, start + took)
            self._service_done += took
            self._wait_done += wait
            self._served += 1
            if wait > slo:
                late.append(i)
            i += 1
        self._begun = i


def _within(intervals: tuple[Interval, ...], now: float) -> bool:
    return any(begin <= now < end for begin, end in intervals)
