"""The behavior of Kubernetes' HorizontalPodAutoscaler v2: how fast and how far a count may move, in each direction.

Order, as in HPA: tolerance (is the difference worth a change), stabilization (what was wanted in the past window: up
to the least of it, down to the greatest), then the policies, which limit the change within their period:

    start of the period = current count - net change by scale events within the period
    up:   Pods  start + value     Percent  start * (1 + value/100), rounded up
    down: Pods  start - value     Percent  start * (1 - value/100), rounded down (the change is rounded up)

selectPolicy Max takes the policy that allows the most change, Min the least, Disabled allows none. An event or a
recommendation counts while it is younger than the period or window, not when it is exactly as old.

Sources: kubernetes.io "Horizontal Pod Autoscaling", sections "Configurable scaling behavior" and "Tolerance";
KEP-853; kubernetes/pkg/controller/podautoscaler/horizontal.go.

Histories are tuples of (time, value), oldest first. Of past recommendations only those are kept that can still be the
greatest (or the least) of a window to come, so an hour's window costs as many entries as it holds distinct extremes.
"""

from __future__ import annotations

import math

from autoscaler.types import Behavior, Rules

History = tuple[tuple[float, int], ...]
MOST_ENTRIES = 256
LONGEST_WINDOW_S = 3600.0
LONGEST_PERIOD_S = 1800.0
_EPSILON = 1e-6


def round_up(replicas: float) -> int:
    """Whole replicas for a fractional need; what floating point adds to a whole number is not a replica."""
    return math.ceil(replicas - _EPSILON)


def propose(up: float, down: float, current: int, behavior: Behavior) -> int:
    """The count for a need of at least `up` and at most `down` replicas (fractional); current within tolerance."""
    if up > current and up > current * (1.0 + behavior.up.tolerance) + _EPSILON:
        return round_up(up)
    if down < current and down < current * (1.0 - behavior.down.tolerance) - _EPSILON:
        return round_up(down)
    return current


def remember_high(highs: History, now: float, count: int) -> History:
    """Past recommendations, without those that a later one as great makes needless."""
    if not highs or highs[0][1] <= count:
        return ((now, count),)
    end = len(highs)
    while end and highs[end - 1][1] <= count:
        end -= 1
    kept = (*_recent(highs[:end], now, LONGEST_WINDOW_S), (now, count))
    # Over the bound the oldest holds as long as its successor: longer than asked, never shorter.
    return kept if len(kept) <= MOST_ENTRIES else ((kept[1][0], kept[0][1]), *kept[2:])


def remember_low(lows: History, now: float, count: int) -> History:
    """Past recommendations, without those that a later one as small makes needless."""
    if not lows or lows[0][1] >= count:
        return ((now, count),)
    end = len(lows)
    while end and lows[end - 1][1] >= count:
        end -= 1
    kept = (*_recent(lows[:end], now, LONGEST_WINDOW_S), (now, count))
    return kept if len(kept) <= MOST_ENTRIES else ((kept[1][0], kept[0][1]), *kept[2:])


def remember_event(events: History, now: float, change: int) -> History:
    """Scale events with one more; a change of 0 is none."""
    if not change and not events:
        return events
    kept = _recent(events, now, LONGEST_PERIOD_S)
    if change:
        kept = (*kept, (now, change))
    if len(kept) > MOST_ENTRIES:
        (_, a), (later, b), *rest = kept
        kept = ((later, a + b), *rest)
    return kept


def _recent(history: History, now: float, window: float) -> History:
    for index, (at, _) in enumerate(history):
        if at > now - window:
            return history if index == 0 else history[index:]
    return ()


def stabilize(behavior: Behavior, current: int, desired: int, highs: History, lows: History, now: float) -> int:
    """Current moved as little as the stabilization windows demand towards desired."""
    least = greatest = desired
    # Lows rise and highs fall with time: the first entry within a window is its extreme.
    for at, count in lows:
        if at > now - behavior.up.stabilization_s:
            least = min(count, desired)
            break
    for at, count in highs:
        if at > now - behavior.down.stabilization_s:
            greatest = max(count, desired)
            break
    return min(max(current, least), greatest)


def up_limit(rules: Rules, current: int, events: History, now: float) -> int:
    """The greatest count that the policies allow now, at least current."""
    if rules.select == "Disabled":
        return current
    allowed = []
    for policy in rules.policies:
        start = current - _net(events, now, policy.period_s)
        allowed.append(start + policy.value if policy.type == "Pods" else -(start * (100 + policy.value) // -100))
    best = (max if rules.select == "Max" else min)(allowed, default=current)
    return max(best, current)


def down_limit(rules: Rules, current: int, events: History, now: float) -> int:
    """The smallest count that the policies allow now, from 0 to current."""
    if rules.select == "Disabled":
        return current
    allowed = []
    for policy in rules.policies:
        start = current - _net(events, now, policy.period_s)
        allowed.append(start - policy.value if policy.type == "Pods" else start * (100 - policy.value) // 100)
    best = (min if rules.select == "Max" else max)(allowed, default=current)
    return max(0, min(best, current))


def _net(events: History, now: float, period: float) -> int:
    return sum(change for at, change in events if at > now - period)
