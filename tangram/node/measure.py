"""CPU and memory of Instances, each with all its descendants, read straight from /proc.

CPU is the growth of the tree's CPU time between two samples. A process's figure holds that of the children it has
waited for, so the sum over a tree goes on when children come and go: a child that ends moves from its own figure to
its parent's. Parents are read before their children, so that a child that ends in between is missing from one sample
and never counted twice; a sum that has shrunk so is passed over once. A process found late (it existed before the last
sample and was not seen) counts from then on.

Memory is PSS (each shared page divided by its users), so that the sum over Instances is what the machine really
gives them; where the kernel denies it, resident memory. It costs a walk over the page tables, so it is read more
seldom once the Instance has lived for a while, and for a process that is dear to read more seldom yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tangram.node.processes import Stat, read_stat

_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MIB: Final = 1024 * 1024
_MEMORY_PERIOD_S: Final = 5.0
#: Memory is read so seldom that it takes at most this part of a core.
_MEMORY_SHARE: Final = 0.005


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_percent: float | None
    """Of one core, since the last sample; None at the first."""
    memory_mib: float | None


@dataclass(slots=True)
class _Tree:
    start_ticks: int
    at: float
    cpu_ticks: int
    members: dict[int, Stat]
    cpu_percent: float | None = None
    shrunk: bool = False
    memory_mib: float | None = None
    memory_due: float = field(default=float("-inf"))


class Meter:
    """Remembers the last sample of each Instance. `now` is seconds since boot (CLOCK_BOOTTIME), as start times are."""

    def __init__(self, proc: str = "/proc", cost_clock: Callable[[], float] = time.thread_time) -> None:
        self._proc = proc
        self._cost_clock = cost_clock
        self._trees: dict[str, _Tree] = {}
        self._most = 100.0 * (os.cpu_count() or 1)

    def sample(self, roots: Mapping[str, tuple[int, int]], now: float) -> dict[str, Usage]:
        """Usage of each Instance in `roots` (leader's pid and start time); those not in it are forgotten."""
        self._trees = {name: tree for name, tree in self._trees.items() if name in roots}
        usages = {}
        for name, (pid, start_ticks) in roots.items():
            tree = self._trees.get(name)
            if tree is not None and tree.start_ticks != start_ticks:
                del self._trees[name]
                tree = None
            members = self._members(pid, start_ticks, tree.members if tree else {})
            if not members:
                continue
            if tree is None:
                ticks = sum(s.cpu_ticks for s in members.values())
                tree = self._trees[name] = _Tree(start_ticks, now, ticks, members)
            else:
                self._advance(tree, members, now)
            if now >= tree.memory_due:
                began = self._cost_clock()
                tree.memory_mib = sum(self._memory(member) for member in members) / _MIB
                cost = self._cost_clock() - began
                age = now - start_ticks / _TICKS_A_SECOND
                tree.memory_due = now + max(min(_MEMORY_PERIOD_S, age), cost / _MEMORY_SHARE)
            usages[name] = Usage(tree.cpu_percent, tree.memory_mib)
        return usages

    def _advance(self, tree: _Tree, members: dict[int, Stat], now: float) -> None:
        ticks = sum(s.cpu_ticks for s in members.values())
        # What a process used before it was first seen here is not of this sample, unless it began during it.
        begun = tree.at * _TICKS_A_SECOND - 1
        late = [s for pid, s in members.items() if pid not in tree.members and s.start_ticks < begun]
        base = tree.cpu_ticks + sum(s.cpu_ticks for s in late)
        if ticks < base and not tree.shrunk:
            tree.shrunk = True
            tree.members = members
            tree.cpu_ticks = base
            return
        elapsed = now - tree.at
        if elapsed > 0:
            percent = 100.0 * (ticks - base) / _TICKS_A_SECOND / elapsed
            tree.cpu_percent = min(max(0.0, percent), self._most)
        tree.at, tree.cpu_ticks, tree.members, tree.shrunk = now, ticks, members, False

    def _members(self, root: int, start_ticks: int, before: Mapping[int, Stat]) -> dict[int, Stat]:
        """The tree, parents first, and what belonged to it at the last sample and has left its parent since."""
        members: dict[int, Stat] = {}
        queue = [root, *(pid for pid in before if pid != root)]
        for pid in queue:
            if pid in members:
                continue
            stat = read_stat(pid, self._proc)
            if stat is None:
                continue
            known = start_ticks if pid == root else before[pid].start_ticks if pid in before else stat.start_ticks
            if stat.start_ticks != known:
                continue
            members[pid] = stat
            queue.extend(self._children(pid))
        return members

    def _children(self, pid: int) -> list[int]:
        children: list[int] = []
        try:
            threads = os.listdir(f"{self._proc}/{pid}/task")  # noqa: PTH208
        except OSError:
            return children
        for thread in threads:
            try:
                with open(f"{self._proc}/{pid}/task/{thread}/children", encoding="ascii") as file:  # noqa: PTH123
                    children += map(int, file.read().split())
            except (OSError, ValueError):
                continue
        return children

    def _memory(self, pid: int) -> int:
        try:
            with open(f"{self._proc}/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
                for line in file:
                    if line.startswith(b"Pss:"):
                        return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        try:
            with open(f"{self._proc}/{pid}/statm", "rb") as file:  # noqa: PTH123
                return int(file.read().split()[1]) * _PAGE
        except (OSError, ValueError, IndexError):
            return 0
