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
    b = spare / math.sqrt(load)
    if b > 30.0:
        return 0.0
    density = math.exp(-b * b / 2.0) / _SQRT_2PI
    normal = 0.5 * (1.0 + math.erf(b / _SQRT_2))
    return density / (density + b * normal) * math.exp(-spare * wait_s / service_s)


def replicas_for(rate: float, capacity: float, slots: float, wait_s: float, share: float) -> int:
    """The least number of replicas with at most `share` of the requests waiting longer than `wait_s`."""
    if rate <= 0.0:
        return 0
    low = math.floor(rate / capacity)
    high = low + math.ceil((3.0 * math.sqrt(rate * slots / capacity) + 3.0) / slots) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if late_share(rate, middle, capacity, slots, wait_s) > share:
            low = middle
        else:
            high = middle
    return high
