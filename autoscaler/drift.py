"""Whether requests have begun to take longer than they used to: a CUSUM test on completions.

While `in_flight` requests run whose mean service time is s, in_flight / s of them end each second, as Poisson's. If
services take f times as long, 1 / f of that. Each report adds the logarithm of how much likelier it is under the
second; the sum starts anew where it falls below 0, and past `ALARM` services have slowed (Page, 1954). The reports
since the last start anew are those since the change, most likely, so they tell the new service time.

Services of constant length end late after a rise of the rate: none of those that came with it for s seconds. So half of
what in flight has risen is counted as completed, and all of it where new replicas took up a queue; less and less of it
with time, as the sum falls while nothing has slowed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

FACTOR = 1.5
"""The slowdown looked for; greater ones are found sooner, those below about 1.2 not at all."""
ALARM = 10.0
"""In false alarms: fewer than one in e^10 reports, most of which are seconds of a busy model."""
SUSPICION = 7.0
"""From here on plans count on no more than what a replica does if it is so, while evidence comes in: it hardly ever is
got to by chance, and replicas asked for a few seconds sooner spare more than those that were not needed cost."""
_LOG = math.log(FACTOR)
_GAIN = 1.0 - 1.0 / FACTOR


class Watch(NamedTuple):
    """Since the sum was last 0."""

    score: float = 0.0
    requests: float = 0.0
    """Completed."""
    busy_s: float = 0.0
    full: float = 0.0
    """Fullness x requests."""
    flight: float = 0.0
    """In flight before."""
    ready: int = 0
    """Replicas, before."""
    debt: float = 0.0
    """What of the score a rise of the rate may explain."""


def observe(
    watch: Watch,
    completions: float,
    busy_s: float,
    full: float,
    in_flight: float,
    before: float,
    ready: int,
    service_s: float,
) -> Watch:
    """With one report more: `busy_s` request-seconds, `in_flight` and `before` the means over it and the one before,
    `service_s` what a request is expected to take."""
    score, requests, busy, fullness, flight, at_first, debt = watch
    due = busy_s / service_s
    score += _GAIN * due - _LOG * completions
    if score <= 0.0:
        return _CALM
    if not requests and not busy:
        flight, at_first = before, ready
    share = 1.0 if ready > at_first else 0.5
    debt = max(0.0, debt + _LOG * share * (in_flight - before) - (_LOG - _GAIN) * due)
    return Watch(score, requests + completions, busy + busy_s, fullness + full * completions, flight, at_first, debt)


_CALM = Watch()


def has_slowed(watch: Watch) -> bool:
    """Whether services take longer, beyond chance and beyond what a rise of the rate explains."""
    return watch.score - watch.debt > ALARM


def may_have_slowed(watch: Watch) -> bool:
    """Whether it looks so, though it may yet be chance."""
    return watch.score - watch.debt > SUSPICION
