"""Traffic that comes by the clock, for models that go to zero: bursts after silences whose intervals hardly vary.

The time at which each burst began is kept. Once three intervals, counted in multiples of their median, lie
within a quarter of it (or two within a tenth), the next burst is expected one median after the last, give or take the
greatest deviation seen. A replica is started so that it is ready before that, and kept until the time has passed; in
between there is no reason to wait for the usual idle time.

Source: the hybrid histogram policy of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020), which keeps the
spread of idle times and pre-warms at its head.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

SILENCE_S = 30.0
"""What begins after a shorter silence belongs to the burst before."""
KEEP_S = 15.0
"""Idle time that is enough between two expected bursts."""
KEPT = 10
_LEAST, _SHARE = 4, 0.25
_FEWER, _TIGHTER = 3, 0.1
"""With fewer bursts seen they have to keep better time."""
_MARGIN_S = 3.0
_MISSED = 2
"""Expected bursts that may fail to come before the timer is given up."""

Onsets = tuple[float, ...]


def remember(onsets: Onsets, now: float) -> Onsets:
    """With the burst that begins now."""
    return (*onsets[-(KEPT - 1) :], now)


def period(onsets: Onsets) -> tuple[float, float] | None:
    """Seconds between bursts and the greatest deviation; None where they do not come by the clock."""
    if len(onsets) < _FEWER:
        return None
    gaps = [later - earlier for earlier, later in pairwise(onsets)]
    usual = median(gaps)
    off = [abs(gap - usual * max(1, round(gap / usual))) for gap in gaps]
    allowed = _SHARE if len(onsets) >= _LEAST else _TIGHTER
    return (usual, max(off)) if max(off) <= allowed * usual else None


def is_due(onsets: Onsets, lead_s: float, now: float) -> bool:
    """Whether a replica should be there, or on its way: a burst may begin `lead_s` from now or be late already."""
    known = period(onsets)
    if known is None:
        return False
    usual, off = known
    since = now - onsets[-1]
    return any(
        k * usual - off - lead_s - _MARGIN_S <= since <= k * usual + off + _MARGIN_S for k in range(1, _MISSED + 1)
    )
