"""Which devices of a node a slice of several gets: those with the strongest links between them (NVLink before PCIe).

The strength of a set is that of its weakest pair first (one PCIe hop slows every collective), then of all pairs in sum.
All sets are looked at where they are few, as they are on nodes of up to eight devices; of more, sets are grown one
device at a time from each strongest start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import comb
from typing import Any, Final

from packer.inventory import Device

_SETS: Final = 2_000

Strength = tuple[int, int]
"""Of the weakest pair, of all pairs in sum."""


class Links:
    """The links between the devices of one node, by number."""

    def __init__(self, devices: Sequence[Device]) -> None:
        # A link that only one end reports is one all the same.
        self._between = [
            [max(a.links.get(b.id, 0), b.links.get(a.id, 0)) if a is not b else 0 for b in devices] for a in devices
        ]
        self.any = any(any(row) for row in self._between)

    def strength(self, chosen: Iterable[int]) -> Strength:
        """How well the devices are linked."""
        pairs = [self._between[a][b] for a, b in combinations(sorted(chosen), 2)]
        return min(pairs, default=0), sum(pairs)

    def best(
        self, able: Sequence[int], count: int, worse: Callable[[tuple[int, ...]], tuple[Any, Any]]
    ) -> tuple[int, ...]:
        """The set of so many devices that is linked best; of equals, and before links, the least by `worse`.

        `worse` gives a pair: what matters more than links, and what settles ties.
        """

        def rank(chosen: tuple[int, ...]) -> tuple[Any, ...]:
            first, last = worse(chosen)
            weakest, total = self.strength(chosen)
            return first, -weakest, -total, last

        return min(self._sets(able, count), key=rank)

    def _sets(self, able: Sequence[int], count: int) -> Iterable[tuple[int, ...]]:
        if comb(len(able), count) <= _SETS:
            return combinations(able, count)
        return {self._grown(start, able, count) for start in able}

    def _grown(self, start: int, able: Sequence[int], count: int) -> tuple[int, ...]:
        chosen: tuple[int, ...] = (start,)
        while len(chosen) < count:
            following = max((d for d in able if d not in chosen), key=lambda d: self.strength((*chosen, d)))
            chosen = (*chosen, following)
        return tuple(sorted(chosen))
