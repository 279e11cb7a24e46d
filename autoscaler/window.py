"""Rates and levels over sliding windows, from samples that come at irregular times and may have parts missing.

Each sample becomes a Span: the seconds it covers and what was counted or measured in them. Spans shorter than half a
second are merged, so a storm of wake-ups costs no memory. A window's totals weigh a span that sticks out of the window
by the share that lies within. A rate divides by the seconds *covered*, not by the window's length, so a lost report
does not read as silence; and by no less than the short window, so that one request in 20 ms is not 50 a second.

Two windows are read. The stable one (10 s) is the estimate. The short one (3 s) takes over upwards only, when it
exceeds the stable one beyond what chance explains: given N arrivals in the stable window, the number in the short
part p of it is binomial(N, p) at a constant rate, so its distance from N p in standard deviations is a test of the
rate having risen (the conditional test of two Poisson rates; Przyborowski and Wilenski, 1940).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from autoscaler.types import MetricName, Sample, Supply

STABLE_S = 10.0
SHORT_S = 3.0
NOISE_Z = 4.0
"""Standard deviations above which a rise is not taken for chance."""
FULL_SHARE = 0.8
"""Share of the stable window that must be covered before it may shrink anything."""
_MERGE_S = 0.5
_MOST_SPANS = 64


class Usage(NamedTuple):
    """One resource over the ready replicas."""

    total: float
    """Sum of percent over the replicas that were measured."""
    mean: float
    """Percent, over the same."""
    measured: int
    missing: int
    """Ready replicas that could not be measured."""


class Span(NamedTuple):
    """What is known of `seconds` up to `end`; None is missing."""

    end: float
    seconds: float
    arrivals: float | None
    completions: float | None
    in_flight: float | None
    queued: float | None
    cpu: Usage | None
    memory: Usage | None
    device_memory: Usage | None


Spans = tuple[Span, ...]


class Totals(NamedTuple):
    """Sums over one window, each with the seconds that could be covered."""

    covered: float
    arrivals: float
    worked: float
    """Seconds for which completions are known."""
    completions: float
    loaded: float
    """Seconds for which in flight and queued are known."""
    in_flight: float
    """Request-seconds."""
    queued: float
    """Request-seconds."""


def _usage(values: tuple[float, ...], ready: int) -> Usage:
    total = math.fsum(values)
    return Usage(total, total / len(values), len(values), max(0, ready - len(values)))


def add(spans: Spans, sample: Sample, supply: Supply, now: float) -> Spans:
    """The spans with one sample more, and without those that left the stable window."""
    seconds = max(0.0, sample.dt)
    is_known = sample.arrivals is not None
    new = Span(
        now,
        seconds,
        sample.arrivals,
        sample.completions if is_known else None,
        sample.in_flight if is_known else None,
        sample.queued if is_known else None,
        _usage(sample.cpu, supply.ready) if sample.cpu else None,
        _usage(sample.memory, supply.ready) if sample.memory else None,
        _usage(sample.device_memory, supply.ready) if sample.device_memory else None,
    )
    first = max(0, len(spans) + 1 - _MOST_SPANS)
    oldest = now - STABLE_S
    while first < len(spans) and spans[first].end <= oldest:
        first += 1
    if first < len(spans):
        last = spans[-1]
        if last.seconds + seconds <= _MERGE_S and _same_parts(last, new):
            return (*spans[first:-1], _merge(last, new))
    return (*spans[first:], new)


def _same_parts(a: Span, b: Span) -> bool:
    return (
        (a.arrivals is None) == (b.arrivals is None)
        and (a.completions is None) == (b.completions is None)
        and (a.in_flight is None) == (b.in_flight is None)
        and (a.queued is None) == (b.queued is None)
    )


def _merge(a: Span, b: Span) -> Span:
    seconds = a.seconds + b.seconds
    weight = b.seconds / seconds if seconds else 1.0

    def total(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x + y

    def mean(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x + (y - x) * weight

    return Span(
        b.end,
        seconds,
        total(a.arrivals, b.arrivals),
        total(a.completions, b.completions),
        mean(a.in_flight, b.in_flight),
        mean(a.queued, b.queued),
        b.cpu or a.cpu,
        b.memory or a.memory,
        b.device_memory or a.device_memory,
    )


def both(spans: Spans, now: float) -> tuple[Totals, Totals]:
    """Sums over the stable and over the short window."""
    start, oldest = now - SHORT_S, now - STABLE_S
    covered = arrivals = worked = completions = loaded = in_flight = queued = 0.0
    short: Totals | None = None
    for end, span_s, arrived, completed, flying, waiting, _, _, _ in reversed(spans):
        if short is None:
            # Where a span ends at the short window's start, as with a report each second, its sums are known here.
            if end <= start:
                short = Totals(covered, arrivals, worked, completions, loaded, in_flight, queued)
            elif end - span_s < start:
                return totals(spans, now, STABLE_S), totals(spans, now, SHORT_S)
        inside = end - oldest
        if inside <= 0:
            break
        if arrived is None:
            continue
        seconds, share = (inside, inside / span_s) if span_s > inside else (span_s, 1.0)
        covered += seconds
        arrivals += arrived * share
        if completed is not None:
            worked += seconds
            completions += completed * share
        if flying is not None and waiting is not None:
            loaded += seconds
            in_flight += flying * seconds
            queued += waiting * seconds
    stable = Totals(covered, arrivals, worked, completions, loaded, in_flight, queued)
    return stable, short or stable


def totals(spans: Spans, now: float, window: float) -> Totals:
    """Sums over the last `window` seconds."""
    start = now - window
    covered = arrivals = worked = completions = loaded = in_flight = queued = 0.0
    for end, span_s, arrived, completed, flying, waiting, _, _, _ in reversed(spans):
        inside = end - start
        if inside <= 0:
            break
        if arrived is None:
            continue
        seconds, share = (inside, inside / span_s) if span_s > inside else (span_s, 1.0)
        covered += seconds
        arrivals += arrived * share
        if completed is not None:
            worked += seconds
            completions += completed * share
        if flying is not None and waiting is not None:
            loaded += seconds
            in_flight += flying * seconds
            queued += waiting * seconds
    return Totals(covered, arrivals, worked, completions, loaded, in_flight, queued)


def usage(spans: Spans, now: float, name: MetricName) -> Usage | None:
    """The latest usage of a resource, with total and mean averaged over the stable window.

    The load is the averaged total: when a replica is added the load stays, and the mean of the past says too much.
    """
    index = {"cpu": 6, "memory": 7, "deviceMemory": 8}[name]
    weight = total = mean = 0.0
    latest: Usage | None = None
    for span in reversed(spans):
        if span.end <= now - STABLE_S:
            break
        value: Usage | None = span[index]  # type: ignore[assignment]
        if value is None:
            continue
        latest = latest or value
        seconds = max(span.seconds, 1e-3)
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
    slow = stable.arrivals / max(stable.covered, SHORT_S)
    fast = short.arrivals / max(short.covered, SHORT_S)
    part = short.covered / stable.covered if stable.covered > 0 else 1.0
    if fast > slow and part < 1.0:
        # Half an arrival is the continuity correction, which matters where arrivals are few.
        excess = short.arrivals - stable.arrivals * part - 0.5
        if excess > NOISE_Z * math.sqrt(stable.arrivals * part * (1.0 - part)):
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
