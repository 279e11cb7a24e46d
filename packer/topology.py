"""Which devices of a node a slice of several gets: those that are linked best, NVLink before a short way over PCIe.

Two devices are linked by so many NVLinks, or else so far apart over PCIe (one switch, several, the host bridge, the
NUMA node, the machine). The strength of a set is that of its weakest pair first, since one slow hop slows every
collective, then the NVLinks of all pairs in sum, then how near all are. Two devices of different models are the weakest
pair of all. Of sets as strong that one is taken whose leaving cuts the fewest links between what is still free: an
island that is broken already before a whole one. For the same reason a slice of one device goes where it cuts least.

All sets are looked at where they are few, as they are on nodes of up to eight devices; of more, sets are grown one
device at a time from each start. Ties are settled by what devices hold and how they are linked, never by name or order.
What is worked out is kept for all nodes that are linked alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any, Final

from packer.inventory import Device, Distance

_SETS: Final = 2_000
_KEPT: Final = 4_096
"""Sets of free devices of one kind of node for which the best are kept."""
_NVLINK: Final = 64
"""What an NVLink counts: more than any nearness over PCIe."""
_UNLIKE: Final = -1
"""Of a pair of two models."""
_ROUNDS: Final = 2

Strength = tuple[int, int, int]
"""Of the weakest pair; NVLinks of all pairs; nearness of all pairs."""
_Row = tuple[str, tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
"""Of one device: its model, and by the other's number its NVLinks and distances."""


def links_of(devices: Sequence[Device]) -> Links:
    """How the devices of a node are linked; what several nodes have in common is made once."""
    number = {d.id: i for i, d in enumerate(devices)}
    return _made(
        tuple(
            (
                d.model,
                tuple((number[other], count) for other, count in d.links.items() if other in number),
                tuple((number[other], int(far)) for other, far in d.distances.items() if other in number),
            )
            for d in devices
        )
    )


def joined(devices: Sequence[Device]) -> str:
    """How several devices are linked, in words: "2 devices joined by 4 NVLinks"."""
    return links_of(devices).words(range(len(devices)))


class Links:
    """The links between the devices of one node, by number."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        width = range(len(rows))
        self._nvlinks = [[0 for _ in width] for _ in width]
        self._distance: list[list[int | None]] = [[None for _ in width] for _ in width]
        for a, (_, links, distances) in enumerate(rows):
            # A link that only one end reports is one all the same; of two distances the shorter counts.
            for b, count in links:
                self._nvlinks[a][b] = self._nvlinks[b][a] = max(count, self._nvlinks[a][b])
            for b, far in distances:
                known = self._distance[a][b]
                self._distance[a][b] = self._distance[b][a] = far if known is None else min(far, known)
        self._near = [[0 if far is None else Distance.SYS - far for far in row] for row in self._distance]
        self._pair = [
            [_NVLINK * self._nvlinks[a][b] + self._near[a][b] if rows[a][0] == rows[b][0] else _UNLIKE for b in width]
            for a in width
        ]
        self.any = any(value for row in self._pair for value in row)
        """Whether it matters at all which devices are taken."""
        self._fixed = self._colours([0 for _ in width])
        self.signature = repr(sorted(self._fixed)) if self.any else ""
        """A text that nodes linked alike share, whatever the order of their devices."""
        self._best: dict[tuple[int, int], tuple[int, list[tuple[int, ...]]]] = {}

    def strength(self, chosen: Iterable[int]) -> Strength:
        """How well the devices are linked."""
        pairs = list(combinations(sorted(chosen), 2))
        return (
            min((self._pair[a][b] for a, b in pairs), default=0),
            sum(self._nvlinks[a][b] for a, b in pairs),
            sum(self._near[a][b] for a, b in pairs),
        )

    def rank(self, able: int, count: int) -> int:
        """The strength of the best set of so many of the devices in the bit mask, as one number."""
        return self._strongest(able, count)[0]

    def best_words(self, able: int, count: int) -> str:
        """How the best such set is linked, as a person would say it."""
        return self.words(self._strongest(able, count)[1][0])

    def best(self, able: Sequence[int], count: int, burden: Sequence[int], state: Sequence[Any]) -> tuple[int, ...]:
        """The set of so many devices that is linked best.

        For each device of the node `burden` is what matters more than links, the less the better, and `state` is what
        settles ties: what it holds, as numbers, the least first.
        """
        if len({burden[d] for d in able}) == 1:
            _, equals = self._strongest(sum(1 << d for d in able), count)
        else:
            ranked = [
                ((sum(burden[d] for d in s), *(-part for part in self.strength(s)), self.cut(s, able)), s)
                for s in self._sets(able, count)
            ]
            least = min(r for r, _ in ranked)
            equals = [s for r, s in ranked if r == least]
        if len(equals) == 1:
            return equals[0]
        first = min(sorted(state[d] for d in s) for s in equals)
        return self._settled([s for s in equals if sorted(state[d] for d in s) == first], able, state)

    def loosest(self, alike: Sequence[int], free: Collection[int], state: Sequence[Any]) -> int:
        """Of devices that are alike but for their links the one whose taking cuts least between those that are free."""
        cuts = {d: self.cut((d,), free) for d in alike}
        least = min(cuts.values())
        return self._settled([(d,) for d, cut in cuts.items() if cut == least], free, state)[0]

    def cut(self, chosen: tuple[int, ...], free: Iterable[int]) -> int:
        """How strong the links are from the chosen to the other free ones, in sum."""
        rest = [d for d in free if d not in chosen]
        return sum(max(0, self._pair[a][b]) for a in chosen for b in rest)

    def words(self, chosen: Iterable[int]) -> str:
        """How the devices are linked, as a person would say it."""
        chosen = sorted(chosen)
        pairs = list(combinations(chosen, 2))
        links = [self._nvlinks[a][b] for a, b in pairs]
        by = f"{len(chosen)} devices"
        if not pairs:
            return by
        if least := min(links):
            count = f"{least} NVLink{'s' if least > 1 else ''}"
            each = "" if len(pairs) == 1 else ", each with each" if least == max(links) else " or more, each with each"
            return f"{by} joined by {count}{each}"
        some = sum(link > 0 for link in links)
        also = f"; {some} of {len(pairs)} pairs have NVLink" if some else ""
        apart = [self._distance[a][b] for (a, b), link in zip(pairs, links, strict=True) if not link]
        known = [far for far in apart if far is not None]
        if len(known) < len(apart):
            return f"{by}{also}" if some else f"{by} without NVLink"
        return f"{by} {_WORDS[Distance(max(known))]}{also}"

    def _strongest(self, able: int, count: int) -> tuple[int, list[tuple[int, ...]]]:
        """(strength as a number, the sets that have it and cut least)."""
        if (kept := self._best.get((able, count))) is not None:
            return kept
        numbers = [d for d in range(len(self._pair)) if able >> d & 1]
        ranked = [(self.strength(s), s) for s in self._sets(numbers, count)]
        most = max(r for r, _ in ranked)
        cuts = [(self.cut(s, numbers), s) for r, s in ranked if r == most]
        least = min(cut for cut, _ in cuts)
        weakest, links, near = most
        found = (weakest - _UNLIKE) << 40 | links << 20 | near, [s for cut, s in cuts if cut == least]
        if len(self._best) >= _KEPT:
            self._best.clear()
        self._best[able, count] = found
        return found

    def _settled(self, tied: Sequence[tuple[int, ...]], able: Collection[int], state: Sequence[Any]) -> tuple[int, ...]:
        if len(tied) == 1:
            return tied[0]
        colours = self._colours([hash((value, d in able)) for d, value in enumerate(state)])
        return min(tied, key=lambda chosen: sorted(colours[d] for d in chosen))

    def _sets(self, able: Sequence[int], count: int) -> Iterable[tuple[int, ...]]:
        if comb(len(able), count) <= _SETS:
            return combinations(sorted(able), count)
        return {self._grown(start, able, count) for start in able}

    def _grown(self, start: int, able: Sequence[int], count: int) -> tuple[int, ...]:
        chosen = [start]
        # To all that are chosen: the weakest pair, the NVLinks and the nearness of each of the others.
        rest = {d: (self._pair[start][d], self._nvlinks[start][d], self._near[start][d]) for d in able if d != start}
        while len(chosen) < count:
            new = max(rest, key=lambda d: (rest[d], self._fixed[d]))
            del rest[new]
            chosen.append(new)
            pair, links, near = self._pair[new], self._nvlinks[new], self._near[new]
            rest = {d: (min(w, pair[d]), n + links[d], m + near[d]) for d, (w, n, m) in rest.items()}
        return tuple(sorted(chosen))

    def _colours(self, state: Sequence[int]) -> list[int]:
        """A number for each device that says what it is and how it is linked to what; mirror images have the same."""
        colours = list(state)
        for _ in range(_ROUNDS):
            colours = [
                hash((own, tuple(sorted((pair, colours[b]) for b, pair in enumerate(self._pair[a]) if a != b))))
                for a, own in enumerate(colours)
            ]
        return colours


@lru_cache(maxsize=1_024)
def _made(rows: tuple[_Row, ...]) -> Links:
    return Links(rows)


_WORDS: Final = {
    Distance.BOARD: "on one board",
    Distance.PIX: "behind one PCIe switch (PIX)",
    Distance.PXB: "behind PCIe switches (PXB)",
    Distance.PHB: "under one PCIe host bridge (PHB)",
    Distance.NODE: "on one NUMA node (NODE)",
    Distance.SYS: "on different NUMA nodes (SYS)",
}
