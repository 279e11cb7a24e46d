"""Whom to serve when all models together want more replicas than there are.

Each model has a value for its n-th replica: the harm that it takes away. The harm at n replicas is the rate of requests
that come too late, from staffing.py where n suffices on average; where n does not, all that exceeds it and, as waiting
spreads to the rest, the more the further it falls short. It is made convex, so that giving the next replica to whom
it helps most is best in all. It is weighed by priority (2 to the power of it) and by what the model suffered of late,
so that none is always the last.

Every model that wants any gets one replica first, highest priority first; then the greatest value decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from autoscaler.staffing import late_share

_WAIT_S = 1.0
_FAIRNESS = 4.0


@dataclass(frozen=True, slots=True)
class Claim:
    """What one model asks of the shared replicas."""

    name: str
    wanted: int
    rate: float
    """Requests per second that are coming."""
    capacity: float
    """Requests per second that a replica can do."""
    slots: float = 1.0
    priority: int = 0
    floor: int = 0
    """minReplicas."""
    suffered: float = 0.0
    """Share of its requests that were late of late, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What it gets."""

    name: str
    replicas: int
    refused: int
    value: float
    """Late requests per second that one more replica would avoid, weighed."""


def harm(claim: Claim, replicas: int) -> float:
    """Requests per second that come too late with so many replicas."""
    served = replicas * claim.capacity
    if served <= 0.0:
        return claim.rate
    if claim.rate < served:
        return claim.rate * late_share(claim.rate, replicas, claim.capacity, claim.slots, _WAIT_S)
    return claim.rate


def values(claim: Claim) -> list[float]:
    """The value of the first, second, ... replica up to those wanted: never rising."""
    harms = [harm(claim, n) for n in range(claim.wanted + 1)]
    weight = 2.0**claim.priority * (1.0 + _FAIRNESS * claim.suffered)
    result: list[float] = []
    at = 0
    while at < claim.wanted:
        # The steepest chord from here on: the lower convex hull of the harms.
        end = max(range(at + 1, claim.wanted + 1), key=lambda n: ((harms[at] - harms[n]) / (n - at), n))
        result += [weight * (harms[at] - harms[end]) / (end - at)] * (end - at)
        at = end
    return result


def share(claims: Sequence[Claim], replicas: int) -> list[Grant]:
    """Who gets how many of `replicas`, in the order of the claims. What nobody wants is left over."""
    granted = dict.fromkeys((claim.name for claim in claims), 0)
    worth = {claim.name: values(claim) for claim in claims}
    left = replicas
    for claim in sorted(claims, key=lambda c: (-c.priority, c.name)):
        first = min(claim.wanted, max(1, claim.floor), left)
        granted[claim.name] = first
        left -= first
    open_ = [(-worth[c.name][granted[c.name]], c.name) for c in claims if granted[c.name] < c.wanted]
    heapify(open_)
    while left > 0 and open_:
        _, name = heappop(open_)
        granted[name] += 1
        left -= 1
        if granted[name] < len(worth[name]):
            heappush(open_, (-worth[name][granted[name]], name))
    return [
        Grant(
            claim.name,
            granted[claim.name],
            claim.wanted - granted[claim.name],
            worth[claim.name][granted[claim.name]] if granted[claim.name] < claim.wanted else 0.0,
        )
        for claim in claims
    ]
