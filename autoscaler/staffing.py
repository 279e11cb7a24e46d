"""How many replicas a rate needs so that few requests wait too long.

A replica is `slots` servers that do `capacity` requests a second together. With n replicas busy with a load of r
slots the wait of a request exceeds w with probability

    P(W > w) = P(W > 0) exp(-(n slots - r) w / s),      s = slots / capacity, r = rate s

which is exact for M/M/c. P(W > 0) is Erlang's C formula in the approximation of Halfin and Whitt (1981),
1 / (1 + b F(b) / f(b)) with b = (c - r) / sqrt(r), F and f the normal distribution and density.
"""

from __future__ import annotations

import math

_SQRT_2 = math.sqrt(2.0)
_SQRT_2PI = math.sqrt(2.0 * math.pi)


def late_share(rate: float, replicas: float, capacity: float, slots: float, wait_s: float) -> float:
    """Share of requests, 0 to 1, that wait longer than `wait_s` at a constant rate below what is there."""
    service_s = slots / capacity
    load = rate * service_s
    spare = replicas * slots - load
    if spare <= 0.0:
        return 1.0
    if load <= 0.0:
        return 0.0
    return _waiting(spare / math.sqrt(load)) * math.exp(-spare * wait_s / service_s)


def _waiting(b: float) -> float:
    """P(W > 0)."""
    if b > 30.0:
        return 0.0
    density = math.exp(-b * b / 2.0) / _SQRT_2PI
    return density / (density + b * (0.5 * (1.0 + math.erf(b / _SQRT_2))))


def replicas_for(rate: float, capacity: float, slots: float, wait_s: float, share: float, at_least: int = 0) -> int:
    """The least number of replicas, from `at_least` on, with at most `share` of the requests waiting over `wait_s`."""
    if rate <= 0.0:
        return at_least
    service_s = slots / capacity
    load = rate * service_s
    root = math.sqrt(load)
    low = math.floor(rate / capacity)
    high = low + math.ceil((3.0 * root + 3.0) / slots) + 1
    if at_least >= high:
        return at_least
    # What is asked for first is whether `at_least` is enough already; then the interval is halved.
    middle = at_least if at_least > low else (low + high) // 2
    while high - low > 1:
        spare = middle * slots - load
        if spare <= 0.0:
            low = middle
        else:
            # Who waits at all is told only where even all of them might be too many.
            late = math.exp(-spare * wait_s / service_s)
            if late > share and _waiting(spare / root) * late > share:
                low = middle
            elif middle == at_least:
                return at_least
            else:
                high = middle
        middle = (low + high) // 2
    return high
