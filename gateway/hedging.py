"""When a slow request is also sent to a second endpoint, and how many may be.

*When*: after a fixed time, or once it is slower than a percentile of recent requests (Dean and Barroso, The Tail at
Scale, 2013). A time is that from the first sending to the head of the answer, whoever gave it. Hedging itself does not
distort them: a rival comes only after the delay, so the share of requests that take longer than the delay is the same
with it as without.

*How many*: a token bucket that earns a share of a token with each request and pays one for each rival, so that never
more than that share is hedged. What a calm hour saved up must not be spent at once on a model that is overloaded, so
the bucket holds no more than the share of the requests of the last ten seconds or so.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

from gateway.wire import Hedge

#: Times that a percentile is taken of, how many there must be, and after how many new ones it is taken again.
SAMPLES: Final = 256
ENOUGH_SAMPLES: Final = 32
_RENEW: Final = 16
#: Of the exponential decay of the count of recent requests.
RECENT_S: Final = 10.0


class Hedging:
    """What one worker knows of one model."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=SAMPLES)
        self._unseen = 0
        """Times that came since the percentile was taken."""
        self._delay: tuple[float, float] | None = None
        """(percentile, seconds)."""
        self._tokens = 0.0
        self._recent = 0.0
        self._at = 0.0

    def __repr__(self) -> str:
        return f"<Hedging {self._tokens:.2f} tokens, {len(self._times)} times>"

    def came(self, policy: Hedge, now: float) -> None:
        """A request came that may be hedged."""
        share = policy.max_percent / 100
        self._recent = self._recent * math.exp(min(0.0, self._at - now) / RECENT_S) + 1
        self._at = now
        self._tokens = min(self._tokens + share, max(1.0, share * self._recent))

    def answered(self, seconds: float) -> None:
        """One was answered, so many seconds after it was first sent."""
        self._times.append(seconds)
        self._unseen += 1

    def delay_s(self, policy: Hedge) -> float | None:
        """Seconds after which a request may be sent again; None while too little is known."""
        if policy.after_s is not None:
            return policy.after_s
        if len(self._times) < ENOUGH_SAMPLES:
            return None
        if self._delay is None or self._delay[0] != policy.percentile or self._unseen >= _RENEW:
            ordered = sorted(self._times)
            rank = math.ceil(policy.percentile / 100 * len(ordered))
            self._delay = policy.percentile, ordered[max(1, rank) - 1]
            self._unseen = 0
        return self._delay[1]

    @property
    def affordable(self) -> bool:
        """Whether one more may be sent twice."""
        # Tenths do not add up to one exactly.
        return self._tokens >= 1.0 - 1e-9

    def spend(self) -> None:
        """One was."""
        self._tokens -= 1.0
