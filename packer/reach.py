"""Sequences of moves on small fleets, looked for one state after another: no solver needed.

A `Problem` is a small fleet with the names left out: items (who may move, then the newcomer) and bins (devices). A
move takes an item to a bin where it fits while its old bin still holds it. `reach` looks at all that moves can reach,
breadth first; `deepen` goes depth first, one move deeper at a time, bounded in the states that it visits; `ordered`
finds an order for moves whose ends are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from packer.inventory import SliceRequest

_STATES: Final = 20_000
"""States that the search without a solver visits for one length of plan."""
SAME_DEVICE: Final = 1_000
"""What a second replica of a group on a device weighs; one on a node weighs 1."""


@dataclass(frozen=True, slots=True)
class Problem:
    items: tuple[SliceRequest, ...]
    """Those who may move, then the newcomer."""
    start: tuple[int, ...]
    """Bin of each mover."""
    bins: tuple[str, ...]
    node_of: tuple[int, ...]
    room: tuple[tuple[int, int, int], ...]
    """For each bin: MiB, percent, clients that movers and newcomer may fill."""
    hosts: tuple[tuple[int, int], ...]
    """For each node: CPU and MiB likewise."""
    allowed: tuple[tuple[int, ...], ...]
    groups: tuple[int, ...] = ()
    """For each item the number of its group; -1 where nobody else is of it, so that spread does not matter."""
    apart: tuple[Counter[int], ...] = ()
    """For each bin: how many of each group lie there and stay."""


def crowding_of(problem: Problem, where: Sequence[int]) -> int:
    """How crowded groups lie: replicas beyond the first on a device weigh more than those on a node."""
    on_bin: Counter[tuple[int, int]] = Counter()
    on_node: Counter[tuple[int, int]] = Counter()
    for b, held in enumerate(problem.apart):
        for group, count in held.items():
            on_bin[group, b] += count
            on_node[group, problem.node_of[b]] += count
    for i, b in enumerate(where):
        if problem.groups and (group := problem.groups[i]) >= 0:
            on_bin[group, b] += 1
            on_node[group, problem.node_of[b]] += 1
    return SAME_DEVICE * sum(n - 1 for n in on_bin.values() if n > 1) + sum(n - 1 for n in on_node.values() if n > 1)


def reach(problem: Problem, most: int, limit: int) -> tuple[list[tuple[int, int]] | None, bool]:
    """Breadth first over all that moves can reach: (the shortest plan, whether everything was seen).

    Placements that differ only in which of two like slices or like devices are meant are one state.
    """
    new = len(problem.items) - 1
    sizes = [(r.memory_mib, r.compute, r.cpu_milli, r.host_memory_mib) for r in problem.items]
    kinds = [
        (problem.room[b], problem.node_of[b], tuple(sorted(problem.apart[b].items()))) for b in range(len(problem.bins))
    ]

    def key(where: tuple[int, ...]) -> tuple[Any, ...]:
        here: list[list[Any]] = [[] for _ in kinds]
        for i, b in enumerate(where):
            here[b].append((sizes[i], problem.groups[i], problem.allowed[i]))
        return tuple(sorted((kinds[b], tuple(sorted(h))) for b, h in enumerate(here)))

    start = tuple(problem.start)
    seen = {key(start)}
    layer: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = [(start, [])]
    for depth in range(most + 1):
        following = []
        found: tuple[int, list[tuple[int, int]]] | None = None
        for where, path in layer:
            load = Load(problem, where)
            for b in problem.allowed[new]:
                if load.fits(new, b):
                    crowding = crowding_of(problem, (*where, b))
                    if found is None or crowding < found[0]:
                        found = crowding, [*path, (new, b)]
        if found is not None:
            return found[1], True
        if depth == most:
            break
        for where, path in layer:
            load = Load(problem, where)
            for i, source in enumerate(where):
                for b in problem.allowed[i]:
                    if b == source or not load.fits(i, b):
                        continue
                    moved = (*where[:i], b, *where[i + 1 :])
                    state = key(moved)
                    if state in seen:
                        continue
                    if len(seen) >= limit:
                        return None, False
                    seen.add(state)
                    following.append((moved, [*path, (i, b)]))
        layer = following
    return None, True


def ordered(problem: Problem, moved: Sequence[int], ends: Sequence[int]) -> list[tuple[int, int]] | None:
    """An order in which each move fits with its source still held, if there is one (depth first, dead ends kept)."""
    load = Load(problem)
    dead: set[frozenset[int]] = set()

    def go(left: frozenset[int]) -> list[tuple[int, int]] | None:
        if not left:
            last = len(problem.items) - 1
            return [(last, ends[last])] if load.fits(last, ends[last]) else None
        if left in dead:
            return None
        for i in sorted(left):
            if load.fits(i, ends[i]):
                load.add(i, ends[i], 1)
                load.add(i, problem.start[i], -1)
                rest = go(left - {i})
                load.add(i, problem.start[i], 1)
                load.add(i, ends[i], -1)
                if rest is not None:
                    return [(i, ends[i]), *rest]
        dead.add(left)
        return None

    return go(frozenset(moved))


def deepen(problem: Problem, most: int) -> list[tuple[int, int]] | None:
    """Depth first, one move deeper at a time."""
    new = len(problem.items) - 1
    for depth in range(most + 1):
        load, where = Load(problem), list(problem.start)
        seen: dict[Any, int] = {}

        best: list[tuple[int, list[tuple[int, int]]]] = []

        def go(left: int, path: list[tuple[int, int]], load: Load, where: list[int], seen: Any, best: Any) -> None:
            if left == 0:
                for b in problem.allowed[new]:
                    if load.fits(new, b):
                        crowding = crowding_of(problem, (*where, b))
                        if not best or crowding < best[0][0]:
                            best[:] = [(crowding, [*path, (new, b)])]
                return
            key = (load.key(), tuple(b for i, b in enumerate(where) if problem.groups[i] >= 0))
            if seen.get(key, -1) >= left or len(seen) > _STATES or (best and best[0][0] == 0):
                return
            seen[key] = left
            for i in range(len(where)):
                source = where[i]
                for b in problem.allowed[i]:
                    if b == source or not load.fits(i, b):
                        continue
                    load.add(i, b, 1)
                    load.add(i, source, -1)
                    where[i] = b
                    go(left - 1, [*path, (i, b)], load, where, seen, best)
                    where[i] = source
                    load.add(i, source, 1)
                    load.add(i, b, -1)

        go(depth, [], load, where, seen, best)
        if best:
            return best[0][1]
    return None


class Load:
    """What movers take of each bin and host."""

    def __init__(self, problem: Problem, where: Sequence[int] | None = None) -> None:
        self._problem = problem
        self._free = [list(r) for r in problem.room]
        self._hosts = [list(h) for h in problem.hosts]
        for i, b in enumerate(problem.start if where is None else where):
            self.add(i, b, 1)

    def add(self, item: int, bin_: int, sign: int) -> None:
        request = self._problem.items[item]
        free, host = self._free[bin_], self._hosts[self._problem.node_of[bin_]]
        free[0] -= sign * request.memory_mib
        free[1] -= sign * request.compute
        free[2] -= sign
        host[0] -= sign * request.cpu_milli
        host[1] -= sign * request.host_memory_mib

    def fits(self, item: int, bin_: int) -> bool:
        request = self._problem.items[item]
        free, host = self._free[bin_], self._hosts[self._problem.node_of[bin_]]
        return (
            request.memory_mib <= free[0]
            and request.compute <= free[1]
            and free[2] >= 1
            and request.cpu_milli <= host[0]
            and request.host_memory_mib <= host[1]
        )

    def key(self) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(f) for f in self._free)
