"""When it pays to ask again: what a refusal's `Retry-After` says."""

from __future__ import annotations

import math
from typing import Final

from gateway.leases import Served

#: Where nothing is known.
UNKNOWN_S: Final = 5
_MAX_S: Final = 300


def retry_after_s(served: Served, now: float) -> int:
    """Seconds until the replica on its way is expected, or until the queue has emptied, whichever is sooner."""
    seconds = served.route.ready_in(now)
    if served.route.usable:
        meter = served.meter
        if meter.completions and meter.flight.value:
            # Little's law: with n in flight that take L seconds each, n/L requests leave in a second.
            mean = meter.latency_s / meter.completions
            drained = (served.room.count + 1) * mean / meter.flight.value
            seconds = drained if seconds is None else min(seconds, drained)
        elif seconds is None:
            seconds = 1.0
    if seconds is None:
        seconds = UNKNOWN_S
    return min(_MAX_S, max(1, math.ceil(seconds)))
