"""How long the last replica of a model that may go to zero is kept without requests: `idle_s`, or less.

The silences between requests are remembered. Where those that ended within `idle_s` all ended in its first half, the
rest of it has helped nobody, and the replica is kept for half as long again as the longest of them. Otherwise it is
kept for all of `idle_s`: on traffic without memory (Poisson) no time is better than another, longer ones are dearer and
shorter ones later in the same proportion.

Source: the tail of the idle-time histogram of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020).
"""

from __future__ import annotations

SHORTEST_S = 15.0
KEPT = 32
_ENOUGH = 16
_BRIEF_S = 3.0
"""Silences that any time to keep is longer than are not remembered."""
_MARGIN = 1.5

Silences = tuple[float, ...]
"""Seconds, oldest first."""


def remember(silences: Silences, seconds: float) -> Silences:
    """With the silence that a request has just ended."""
    return silences if seconds < _BRIEF_S else (*silences[-(KEPT - 1) :], seconds)


def keep_s(silences: Silences, idle_s: float) -> float:
    """Seconds without a request after which the count may go to zero."""
    if len(silences) < _ENOUGH:
        return idle_s
    longest = max((s for s in silences if s <= idle_s), default=0.0)
    return idle_s if longest > idle_s / 2.0 else min(idle_s, max(SHORTEST_S, _MARGIN * longest))
