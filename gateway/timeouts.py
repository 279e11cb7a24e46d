"""How long the gateway bears with a slow client, so that a few of them cannot hold its connections and its replicas.

A head must be whole within `head_s` of its first byte. A body may pause, but not be slow for ever: what the gateway
spent waiting for it may be `body_grace_s` and a second more for each `body_rate` bytes that came. Time in which the
replica lags behind is not the client's. A connection without a request is closed after `idle_s`, one that reads
nothing of its answer after `stall_s`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds, and bytes a second."""

    head_s: float = 10.0
    idle_s: float = 75.0
    body_grace_s: float = 20.0
    body_rate: float = 1024.0
    stall_s: float = 60.0
    half_closed_s: float = 0.25
    """A client that has ended its side still gets an answer that is ready so soon; then it is taken to have left."""


class Pace:
    """How fast a body comes."""

    __slots__ = ("_grace_s", "_rate", "_received", "_waited_s")

    def __init__(self, timeouts: Timeouts) -> None:
        self._grace_s = timeouts.body_grace_s
        self._rate = timeouts.body_rate
        self._received = 0
        self._waited_s = 0.0

    def left(self) -> float:
        """Seconds that the next part may take."""
        return max(0.0, self._grace_s + self._received / self._rate - self._waited_s)

    def came(self, nbytes: int, waited_s: float) -> None:
        """A part came after a wait."""
        self._received += nbytes
        self._waited_s += waited_s
