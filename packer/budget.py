"""A budget of moves: a rate over arrivals with a bounded reserve, spent first where a move admits most.

Every arrival earns its share of a move. A demand is allowed as many moves as the reserve holds, provided that each
move admits enough: the emptier the reserve, the more percent of a device a move has to bring.
"""

from __future__ import annotations

from math import inf

_RESERVE = 64.0
_WORTH = 60.0
"""Percent of a device that a move must admit when the reserve is nearly empty."""


class Budget:
    """Moves per 1,000 arrivals; infinity is unbounded."""

    def __init__(self, per_1000: float) -> None:
        self._rate = per_1000 / 1000
        self._held = 0.0 if per_1000 < inf else inf

    def arrived(self) -> None:
        """One more arrival."""
        self._held = min(_RESERVE, self._held + self._rate) if self._rate < inf else inf

    def allowed(self, demand: int) -> int:
        """Moves that may be spent on letting in this demand (percent of a device)."""
        if self._held == inf:
            return 1 << 30
        worth = _WORTH * (1 - self._held / _RESERVE)
        return int(min(self._held, demand / worth if worth > 0 else inf))

    def spend(self, moves: int) -> None:
        """They were carried out."""
        self._held -= moves
