"""Traffic that comes by the clock, for models that go to zero: bursts after silences whose intervals hardly vary.

The time at which each burst began is kept. While the intervals, counted in multiples of their median, lie within a
quarter of it (two of them: within a tenth), the next burst is expected one median after the last, give or take the
greatest deviation seen and what so few intervals may have hidden. A single interval is tried as well: being wrong costs
one replica for a minute, once. A replica is started so that it is ready before a burst is due, and kept until the time
has passed; in between there is no reason to wait for the usual idle time.

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
KEPT = 16
TRUSTED = 6
"""Bursts from which a rhythm is hardly chance: then nothing is kept in between."""
_LEAST, _SHARE = 4, 0.25
_FEWEST, _TIGHTER = 2, 0.1
"""With fewer bursts seen they have to keep better time."""
_MARGIN_S = 3.0
_UNSEEN = 1.5
"""Over the number of intervals: by how much of itself the greatest deviation may yet be exceeded."""
_UNSEEN_SHARE, _UNSEEN_S = 0.06, 60.0
"""Of the period (so much at most), over the number of intervals: deviation before any has been seen."""
_MISSED = 2
"""Expected bursts that may fail to come before the timer is given up."""

Onsets = tuple[float, ...]
Rhythm = tuple[float, float]
"""Seconds between bursts, and the deviation to allow for."""


def remember(onsets: Onsets, now: float) -> Onsets:
    """With the burst that begins now."""
    return (*onsets[-(KEPT - 1) :], now)


def rhythm(onsets: Onsets) -> Rhythm | None:
    """The rhythm in which bursts come; None where they do not come by the clock."""
    if len(onsets) < _FEWEST:
        return None
    gaps = [later - earlier for earlier, later in pairwise(onsets)]
    usual = median(gaps)
    off = [abs(gap - usual * max(1, round(gap / usual))) for gap in gaps]
    allowed = _SHARE if len(onsets) >= _LEAST else _TIGHTER
    if max(off) > allowed * usual:
        return None
    return usual, max(off) + (_UNSEEN * max(off) + min(_UNSEEN_SHARE * usual, _UNSEEN_S)) / len(gaps)


def is_due(last: float, known: Rhythm, lead_s: float, now: float) -> bool:
    """Whether a replica should be there, or on its way: a burst may begin `lead_s` from now or be late already.

    `last` is when the last burst began.
    """
    usual, off = known
    since = now - last
    return any(
        k * usual - off - lead_s - _MARGIN_S <= since <= k * usual + off + _MARGIN_S for k in range(1, _MISSED + 1)
    )
