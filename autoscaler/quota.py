"""Whom to serve when all models together want more replicas than there are.

Each model has a value for its n-th replica: the harm that it takes away. The harm at n replicas is the rate of requests
that come too late, from staffing.py where n suffices on average; where n does not, nearly all, since the queue grows
until everybody waits. What waits already adds to the rate, as it has to be served too. The harm is weighed by priority
(2 to the power of it) and by what the model was refused of late, so that none is always the last; and harm done anew,
by taking replicas that a model holds, counts several times, since who gets them gains only a start and a queue later.
So what stands is changed where much is gained, and not to and fro.

Every model that wants any gets its min first, or one, highest priority first. What is left goes where the least harm
remains in all. A model that cannot be served in full does hardly better with one replica more, so this is a
knapsack: it is solved exactly, by dynamic programming over the replicas left, while models x replicas are few; beyond
that the harm is made convex and the next replica goes to whom it helps most, which differs by one model at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise

from autoscaler.staffing import late_share

_WAIT_S = 1.0
SUFFER_S = 2000.0
"""Over which `Claim.suffered` is averaged: long, so that models take turns of many minutes; each costs a start."""
_FAIRNESS = 12.0
"""Times its harm that a model counts more when all that it wants was refused of late."""
_STAY = 3.0
"""Times that harm counts more where it comes from taking replicas away."""
_DRAIN_S = 180.0
"""In which what waits is to be served."""
_WAITING = 0.95
"""Share of a model's requests that wait too long as soon as it has less than it needs."""
_MOST_EXACT = 200_000
"""Replicas wanted x replicas there, up to which the division is exact."""


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
    """Share of the replicas wanted that it was refused of late, 0 to 1."""
    held: int = 0
    """Replicas that it has, those that start included."""
    queued: float = 0.0
    """Requests that wait."""
    cost: int = 1
    """Units of what is shared that one replica takes."""


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
    rate = claim.rate + claim.queued / _DRAIN_S
    if served <= 0.0:
        return rate
    if rate < served:
        late = late_share(rate, replicas, claim.capacity, claim.slots, _WAIT_S)
        return rate * min(late, _WAITING)
    return min(rate, rate - served + _WAITING * rate)


def values(claim: Claim) -> list[float]:
    """The value of the first, second, ... replica up to those wanted: never rising."""
    return chords(harms(claim))


def chords(harms: Sequence[float]) -> list[float]:
    """What each replica takes away of the harms with 0, 1, ... of them, made convex: the steepest chords."""
    # The lower convex hull of the harms: its corners, and how steeply it falls to each (Andrew's monotone chain).
    corners, slopes = [0], [0.0]
    for n in range(1, len(harms)):
        slope = (harms[corners[-1]] - harms[n]) / (n - corners[-1])
        while len(corners) > 1 and slope >= slopes[-1]:
            corners.pop()
            slopes.pop()
            slope = (harms[corners[-1]] - harms[n]) / (n - corners[-1])
        corners.append(n)
        slopes.append(slope)
    return [slope for (begin, end), slope in zip(pairwise(corners), slopes[1:], strict=True) for _ in range(begin, end)]


def weight(claim: Claim) -> float:
    """How much its harm counts."""
    return 2.0**claim.priority * (1.0 + _FAIRNESS * claim.suffered)


def harms(claim: Claim) -> list[float]:
    """The harm with 0, 1, ... replicas up to those wanted, weighed; more where it has fewer than it holds."""
    plain = [harm(claim, n) for n in range(claim.wanted + 1)]
    now, counts = plain[min(claim.held, claim.wanted)], weight(claim)
    return [counts * (late + _STAY * max(0.0, late - now)) for late in plain]


def share(claims: Sequence[Claim], units: int) -> list[Grant]:
    """Who gets how many replicas of so many units, in the order of the claims. What nobody wants is left over."""
    granted = dict.fromkeys((claim.name for claim in claims), 0)
    worth = {claim.name: values(claim) for claim in claims}
    left = units
    for claim in sorted(claims, key=lambda c: (-c.priority, c.name)):
        first = min(claim.wanted, max(1, claim.floor), left // claim.cost)
        granted[claim.name] = first
        left -= first * claim.cost
    if sum(claim.wanted for claim in claims) * max(1, left) <= _MOST_EXACT:
        _divide(claims, granted, left)
    else:
        _give(claims, worth, granted, left)
    return [
        Grant(
            claim.name,
            granted[claim.name],
            claim.wanted - granted[claim.name],
            worth[claim.name][granted[claim.name]] if granted[claim.name] < claim.wanted else 0.0,
        )
        for claim in claims
    ]


def _divide(claims: Sequence[Claim], granted: dict[str, int], left: int) -> None:
    """Gives the units left so that the sum of harms is the least."""
    left = min(left, sum((claim.wanted - granted[claim.name]) * claim.cost for claim in claims))
    least = [0.0] * (left + 1)
    chosen: list[list[int]] = []
    for claim in claims:
        late = harms(claim)[granted[claim.name] :]
        choices, sums = [0] * (left + 1), [late[0] + h for h in least]
        for more in range(1, len(late)):
            for total in range(more * claim.cost, left + 1):
                remaining = least[total - more * claim.cost] + late[more]
                if remaining <= sums[total]:
                    sums[total], choices[total] = remaining, more
        least = sums
        chosen.append(choices)
    for claim, choices in zip(reversed(claims), reversed(chosen), strict=True):
        more = choices[left]
        granted[claim.name] += more
        left -= more * claim.cost


def _give(claims: Sequence[Claim], worth: dict[str, list[float]], granted: dict[str, int], left: int) -> None:
    """Gives the units left, a replica at a time, to whom they are worth most."""
    cost = {c.name: c.cost for c in claims}
    open_ = [(-worth[c.name][granted[c.name]] / c.cost, c.name) for c in claims if granted[c.name] < c.wanted]
    heapify(open_)
    while left > 0 and open_:
        _, name = heappop(open_)
        if cost[name] > left:
            continue
        granted[name] += 1
        left -= cost[name]
        if granted[name] < len(worth[name]):
            heappush(open_, (-worth[name][granted[name]] / cost[name], name))
