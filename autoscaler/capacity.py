"""How many requests per second a replica can do, learned from what it is seen to do.

A replica with `slots` requests at a time and a mean service time s does slots / s. By Little's law s is busy time over
requests, request-seconds in flight / completions; half of what in flight has changed since is added to the completions,
since those have been paid for in part. Where the service time rises with how full the replicas are (they share a GPU
or a core), a line through (fullness, service time) is carried on to fullness 1.

Where slots are unbounded, or more slots are allowed than help, only a backlog tells: what is completed while requests
wait is what can be done. The queue signal sees to that (`State.carried`), and the smaller of the two counts.

Two memories run beside each other: a long one (10 min) that plans, and a short one (20 s) that watches. When they
differ by more than chance explains (services are taken to vary as much as exponential ones) and by more than a
quarter, the capacity has drifted, and the long memory is replaced by the short one.

The uncertainty is the service time's: its deviation over the root of the requests remembered. Plans use the capacity
less one such deviation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from autoscaler import drift

LONG_S = 600.0
SHORT_S = 20.0
ENOUGH = 20.0
"""Requests from which something is known."""
_DRIFT_Z = 4.0
_DRIFT_CHANGE = math.log(1.25)
_LEVEL_SHARE = 0.3
_PLENTY = 200.0
_DRIFT_LEAST = 8.0
"""Requests in the short memory from which it may speak."""
_FULLNESS_PRIOR = 0.03
"""Variance of fullness that a slope has to stand out from."""


class Memory(NamedTuple):
    """Exponentially forgotten sums, each weighed by requests."""

    requests: float = 0.0
    busy_s: float = 0.0
    full: float = 0.0
    """Fullness x requests."""
    full_full: float = 0.0
    full_busy: float = 0.0
    """Fullness x busy seconds."""


class Learned(NamedTuple):
    """What is remembered of a replica's work."""

    long: Memory = Memory()
    short: Memory = Memory()
    in_flight: float | None = None
    """At the last report, mean over it."""
    change: float = 0.0
    """How in flight has changed of late, forgotten like the short memory."""
    drifted_at: float | None = None
    slowed_at: float | None = None
    """When it last drifted to less."""
    watch: drift.Watch = drift.Watch()


class Capacity(NamedTuple):
    """Requests per second a replica can do."""

    rate: float
    low: float
    """Less one standard deviation of what is not known, and less what a slowdown that may have begun takes."""
    slots: float
    requests: float
    """It was learned from."""


def observe(
    learned: Learned,
    completions: float,
    in_flight: float,
    boost: float,
    ready: int,
    slots: int,
    seconds: float,
    now: float,
) -> Learned:
    """With one report more; `in_flight` is the mean over it, `boost` the compute each replica had, in slices."""
    long, short, before, change_of_flight, drifted_at, slowed_at, watch = learned
    if before is None:
        before = in_flight
    requests = completions + (in_flight - before) / 2.0
    if requests < 0.0:
        requests = 0.0
    busy = in_flight * seconds * boost
    full = in_flight / (ready * slots) if slots and ready else 0.0
    if full > 1.0:
        full = 1.0
    fading = math.exp(-seconds / SHORT_S)
    # Of what was seen while it drifted, less and less is kept.
    long_s = LONG_S if drifted_at is None else min(LONG_S, max(SHORT_S, now - drifted_at))
    if ready and long.requests >= _PLENTY:
        watch = drift.observe(watch, completions, busy, full, in_flight, before, ready, _service_s(long, full))
    long = _add(long, requests, busy, full, math.exp(-seconds / long_s))
    short = _add(short, requests, busy, full, fading)
    change_of_flight = change_of_flight * fading + in_flight - before
    if watch.requests >= _DRIFT_LEAST and drift.has_slowed(watch):
        # What in flight has risen since has been paid for in part, as above.
        risen = max(0.0, in_flight - watch.flight) / 2.0
        long = short = _flat(Memory(watch.requests + risen, watch.busy_s, watch.full + risen * full))
        return Learned(long, short, in_flight, 0.0, now, now)
    # While replicas fill or empty, busy time and completions belong to different requests.
    is_level = abs(change_of_flight) < _LEVEL_SHARE * short.requests
    if is_level and short.requests >= _DRIFT_LEAST and long.requests >= ENOUGH:
        change = math.log(max(1e-9, short.busy_s / short.requests) / max(1e-9, long.busy_s / long.requests))
        if abs(change) > max(_DRIFT_Z / math.sqrt(short.requests), _DRIFT_CHANGE):
            long, drifted_at, watch = _flat(short), now, drift.Watch()
            slowed_at = now if change > 0.0 else None
    return Learned(long, short, in_flight, change_of_flight, drifted_at, slowed_at, watch)


def _add(memory: Memory, requests: float, busy: float, full: float, keep: float) -> Memory:
    counted, busy_s, fullness, squares, products = memory
    return Memory(
        counted * keep + requests,
        busy_s * keep + busy,
        fullness * keep + full * requests,
        squares * keep + full * full * requests,
        products * keep + full * busy,
    )


def _flat(memory: Memory) -> Memory:
    """The same with no relation between fullness and service time: across a drift there is none."""
    requests, busy, full, _, _ = memory
    return Memory(requests, busy, full, full * full / requests, full * busy / requests)


def known(learned: Learned, slots: int) -> Capacity | None:
    """The capacity of a replica with so many slots; None while too little is known, or slots are unbounded."""
    requests = learned.long.requests
    if not slots or requests < ENOUGH or learned.long.busy_s <= 0.0:
        return None
    if requests < _PLENTY and learned.change > _LEVEL_SHARE * learned.short.requests:
        # Filling from empty, the first to complete are the short ones: the replica would look faster than it is.
        return None
    rate = slots / _service_s(learned.long, 1.0)
    low = rate / (1.0 + 1.0 / math.sqrt(requests))
    if drift.may_have_slowed(learned.watch):
        low /= drift.FACTOR
    return Capacity(rate, low, float(slots), requests)


def _service_s(memory: Memory, fullness: float) -> float:
    """What a request takes in replicas that are so full, or as full as was seen where that is more."""
    requests, busy, full, full_full, full_busy = memory
    mean = busy / requests
    at = full / requests
    slope = full_busy / requests - at * mean
    if slope <= 0.0 or fullness <= at:
        return mean
    variance = max(0.0, full_full / requests - at * at)
    return mean + slope / (variance + _FULLNESS_PRIOR) * (fullness - at)
