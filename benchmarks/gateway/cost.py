"""What processes cost: CPU time to the nanosecond, memory as PSS, and which cores they may use.

A process's CPU clock (clock_getcpuclockid(3)) counts the user and system time of all its threads, those that have ended
too, in nanoseconds; /proc/PID/stat has the same in ticks of 10 ms. What the kernel does for loopback packets is done
within a sender's system call, so it is counted there, alike for every proxy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

_CPUCLOCK_SCHED: Final = 2


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where; the load generator, the upstream and the benchmark itself share `load`."""

    proxy: frozenset[int]
    pair: frozenset[int]
    """Of two workers: a core each where there are enough."""
    load: frozenset[int]


def divide(cores: Iterable[int]) -> Cores:
    """Cores of the proxies and of all else. With one core both share it; from three, two workers have one each."""
    given = sorted(cores)
    proxy, load = given[:1], given[1:] or given[:1]
    pair = given[:2] if len(given) >= 3 else proxy
    if len(given) >= 3:
        load = given[2:]
    return Cores(frozenset(proxy), frozenset(pair), frozenset(load))


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """What this thread starts meanwhile runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> list[int]:
    """A process and all that come from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def cpu_clock(pid: int) -> int:
    """The id of a process's CPU clock, as the kernel has it (posix-timers.h)."""
    return ~pid << 3 | _CPUCLOCK_SCHED


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of these processes, in seconds."""
    return sum(time.clock_gettime_ns(cpu_clock(pid)) for pid in pids) / 1e9


def smaps_bytes(smaps_rollup: str, name: str) -> int:
    """One line of the text of /proc/PID/smaps_rollup, in bytes. Raises ValueError where there is none."""
    for line in smaps_rollup.splitlines():
        found, _, rest = line.partition(":")
        if found == name:
            amount, unit = rest.split()
            if unit == "kB":
                return int(amount) * 1024
    raise ValueError(f"no line '{name}: N kB' in smaps_rollup")


def memory(pids: Iterable[int]) -> int:
    """The proportional set size of these processes, in bytes."""
    return _sum(pids, "Pss")


def own_memory(pids: Iterable[int]) -> int:
    """The part of it that maps no file, in bytes: what others start or end does not change it. For differences."""
    return _sum(pids, "Pss_Anon")


def _sum(pids: Iterable[int], name: str) -> int:
    return sum(smaps_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"), name) for pid in pids)
