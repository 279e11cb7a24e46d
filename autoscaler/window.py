"""Rates and levels over sliding windows, from samples that come at irregular times and may have parts missing.

Of each sample a Mark is kept: running totals up to its time, and since when its figures came in, evenly as far as is
known. What lies in a window is the difference of the totals at its two ends, so it costs the same however many marks
there are. One mark from before the window is kept, for the totals when it began. Marks closer than half a second are
merged, so a storm of wake-ups costs no memory. A rate divides by the seconds *covered*, not by the window's length, so
a lost report does not read as silence; and by no less than the short window, so that one request in 20 ms is not 50 a
second.

Two windows are read. The stable one (10 s) is the estimate. The short one (3 s) takes over upwards only, when it
exceeds the stable one beyond what chance explains: given N arrivals in the stable window, the number in the short
part p of it is binomial(N, p) at a constant rate, so its distance from N p in standard deviations is a test of the
rate having risen (the conditional test of two Poisson rates; Przyborowski and Wilenski, 1940).
"""

from __future__ import annotations

import math
from operator import sub
from typing import NamedTuple

from autoscaler.types import MetricName, Sample, Supply

STABLE_S = 10.0
SHORT_S = 3.0
NOISE_Z = 4.0
"""Standard deviations above which a rise is not taken for chance."""
FULL_SHARE = 0.8
"""Share of the stable window that must be covered before it may shrink anything."""
_MERGE_S = 0.5


class Mark(NamedTuple):
    """Running totals up to `end`; the last of them came in since `begin`."""

    end: float
    begin: float
    covered: float = 0.0
    """Seconds of which arrivals are known."""
    arrivals: float = 0.0
    worked: float = 0.0
    """Seconds of which completions are known."""
    completions: float = 0.0
    loaded: float = 0.0
    """Seconds of which in flight and queued are known."""
    in_flight: float = 0.0
    """Request-seconds."""
    queued: float = 0.0
    """Request-seconds."""


Marks = tuple[Mark, ...]


class Totals(NamedTuple):
    """Sums over one window, each with the seconds of which it is known."""

    covered: float = 0.0
    arrivals: float = 0.0
    worked: float = 0.0
    completions: float = 0.0
    loaded: float = 0.0
    in_flight: float = 0.0
    queued: float = 0.0


_NOTHING = Totals()


def add(marks: Marks, sample: Sample, now: float) -> Marks:
    """The marks with one sample more, and without those that no window needs any longer."""
    if sample.arrivals is None:
        return marks
    seconds = sample.dt if sample.dt > 0.0 else 0.0
    begin = now - seconds
    if not marks:
        marks = (Mark(begin, begin),)
    before, since, covered, arrivals, worked, completions, loaded, in_flight, queued = marks[-1]
    if begin < before:
        begin = before
    covered += seconds
    arrivals += sample.arrivals
    if sample.completions is not None:
        worked += seconds
        completions += sample.completions
    if sample.in_flight is not None and sample.queued is not None:
        loaded += seconds
        in_flight += sample.in_flight * seconds
        queued += sample.queued * seconds
    first, last, oldest = 0, len(marks), now - STABLE_S
    while first + 1 < last and marks[first + 1].end <= oldest:
        first += 1
    if last - first > 1 and now - marks[-2].end <= _MERGE_S:
        last, begin = last - 1, since
    mark = Mark(now, begin, covered, arrivals, worked, completions, loaded, in_flight, queued)
    return (*marks[first:last], mark)


def both(marks: Marks, now: float) -> tuple[Totals, Totals]:
    """Sums over the stable and over the short window."""
    last = len(marks) - 1
    oldest, start = now - STABLE_S, now - SHORT_S
    first = 0
    while first < last and marks[first + 1].end <= oldest:
        first += 1
    for middle in range(last, first, -1):
        if marks[middle][0] <= start:
            break
    else:
        middle = first
    return _since(marks, first, oldest), _since(marks, middle, start)


def _since(marks: Marks, index: int, at: float) -> Totals:
    """Sums from `at` on, before which the mark of that index is the last (or it is the first of all)."""
    if index + 1 >= len(marks):
        return _NOTHING
    before: tuple[float, ...] = marks[index][2:]
    end, begin, *following = marks[index + 1]
    if begin < at:
        share = (at - begin) / (end - begin)
        before = tuple([total + share * (then - total) for total, then in zip(before, following, strict=True)])
    return Totals._make(map(sub, marks[-1][2:], before))


class Usage(NamedTuple):
    """One resource over the ready replicas."""

    total: float
    """Sum of percent over the replicas that were measured."""
    mean: float
    """Percent, over the same."""
    measured: int
    missing: int
    """Ready replicas that could not be measured."""


class Level(NamedTuple):
    """What was measured of the replicas in `seconds` up to `end`; None is missing."""

    end: float
    seconds: float
    cpu: Usage | None
    memory: Usage | None
    device_memory: Usage | None


Levels = tuple[Level, ...]


def measure(levels: Levels, sample: Sample, supply: Supply, now: float) -> Levels:
    """The levels with one sample more, and without those that left the stable window."""
    oldest = now - STABLE_S
    if levels and levels[0].end <= oldest:
        levels = tuple([level for level in levels if level.end > oldest])
    if not (sample.cpu or sample.memory or sample.device_memory):
        return levels
    seconds = max(0.0, sample.dt)
    cpu, memory = _usage(sample.cpu, supply.ready), _usage(sample.memory, supply.ready)
    device = _usage(sample.device_memory, supply.ready)
    if len(levels) > 1 and now - levels[-2].end <= _MERGE_S:
        last = levels[-1]
        level = Level(now, last.seconds + seconds, cpu or last.cpu, memory or last.memory, device or last.device_memory)
        return (*levels[:-1], level)
    return (*levels, Level(now, seconds, cpu, memory, device))


def _usage(values: tuple[float, ...], ready: int) -> Usage | None:
    if not values:
        return None
    total = math.fsum(values)
    return Usage(total, total / len(values), len(values), max(0, ready - len(values)))


def usage(levels: Levels, now: float, name: MetricName) -> Usage | None:
    """The latest usage of a resource, with total and mean averaged over the stable window.

    The load is the averaged total: when a replica is added the load stays, and the mean of the past says too much.
    """
    index = {"cpu": 2, "memory": 3, "deviceMemory": 4}[name]
    weight = total = mean = 0.0
    latest: Usage | None = None
    for level in reversed(levels):
        if level.end <= now - STABLE_S:
            break
        value: Usage | None = level[index]  # type: ignore[assignment]
        if value is None:
            continue
        latest = latest or value
        seconds = max(level.seconds, 1e-3)
        weight += seconds
        total += value.total * seconds
        mean += value.mean * seconds
    return latest and latest._replace(total=total / weight, mean=mean / weight)


class Estimate(NamedTuple):
    """A value over `window` seconds; `before` is the stable value it took over from, if it did."""

    value: float
    window: float
    before: float | None = None


def rate(stable: Totals, short: Totals) -> Estimate:
    """Arrivals a second: the stable estimate, or the short one where the rate has risen beyond chance."""
    covered, arrivals, _, _, _, _, _ = stable
    covered_short, arrivals_short, _, _, _, _, _ = short
    slow = arrivals / (covered if covered > SHORT_S else SHORT_S)
    fast = arrivals_short / (covered_short if covered_short > SHORT_S else SHORT_S)
    if fast > slow:
        part = covered_short / covered if covered > 0.0 else 1.0
        # Half an arrival is the continuity correction, which matters where arrivals are few.
        excess = arrivals_short - arrivals * part - 0.5
        if part < 1.0 and excess > NOISE_Z * math.sqrt(arrivals * part * (1.0 - part)):
            return Estimate(fast, SHORT_S, slow)
    return Estimate(slow, STABLE_S)


def level(stable: float, stable_s: float, short: float, short_s: float) -> Estimate:
    """A level (requests in flight) from request-seconds and seconds of both windows.

    A level of independent requests has the variance of its mean (M/G/infinity); averaging only lowers it.
    """
    slow = stable / max(stable_s, SHORT_S)
    fast = short / max(short_s, SHORT_S)
    if fast - slow > NOISE_Z * math.sqrt(max(slow, 1.0)):
        return Estimate(fast, SHORT_S, slow)
    return Estimate(slow, STABLE_S)
