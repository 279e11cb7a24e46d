"""A CPU budget as a token bucket: a process may use `cores` seconds of CPU a second, and a little at once.

The bucket fills at `cores` tokens (CPU seconds) a second up to `burst_s` and is emptied by the CPU time that the
process has really used, whatever used it. Work is not cut short: a call may start while the bucket is not empty and
may leave it in debt. Work then rests until the debt is paid and a tenth of a second's share is there, so that several
calls follow each other on warm caches, as with a cgroup's `cpu.max` (whose period is a tenth of a second too). Over any
stretch of time the process uses at most `cores` times its length, plus the burst, plus one call.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

_PERIOD_S: Final = 0.1
#: The longest that a changed share goes unnoticed.
LOOK_S: Final = 0.1


class CpuBudget:
    """Says when the next piece of work may start.

    `now` is any monotonic clock and `cpu` the CPU time used so far by the whole process, both in seconds.
    """

    def __init__(self, cores: float, *, now: float, cpu: float, burst_s: float = 0.08) -> None:
        if not (math.isfinite(cores) and cores > 0):
            raise ValueError(f"cores {cores} is not a positive number")
        self.cores = cores
        self._burst_s = burst_s
        self._enough = min(cores * _PERIOD_S, burst_s)
        self._tokens = burst_s
        self._resting = False
        self._now = now
        self._cpu = cpu

    def delay(self, now: float, cpu: float) -> float:
        """Seconds until work may start: 0 at present, or a time after which to ask again."""
        filled = self._tokens + (now - self._now) * self.cores
        self._tokens = min(filled - (cpu - self._cpu), self._burst_s)
        self._now, self._cpu = now, cpu
        self._resting = self._tokens < (self._enough if self._resting else 0.0)
        return (self._enough - self._tokens) / self.cores if self._resting else 0.0

    def resize(self, cores: float, now: float, cpu: float) -> None:
        """From now on the process may use so many cores; what it owes stays."""
        self.delay(now, cpu)
        self.cores = cores
        self._enough = min(cores * _PERIOD_S, self._burst_s)

    def __repr__(self) -> str:
        return f"CpuBudget(cores={self.cores:g}, tokens={self._tokens:.4f})"


class CoresFile:
    """A file that says how many cores the process may use; looked at a few times a second at most.

    Absent, unreadable or without sense, it says nothing.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._next = -math.inf
        self._seen: tuple[int, int] | None = None

    def changed(self, now: float) -> float | None:
        """The cores, where the file has changed since it was last asked."""
        if now < self._next:
            return None
        self._next = now + LOOK_S
        try:
            found = self._path.stat()
            if (seen := (found.st_mtime_ns, found.st_ino)) == self._seen:
                return None
            self._seen = seen
            return cores_from(self._path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None


def cores_from(text: str | None) -> float | None:
    """The value of TANGRAM_CPU_CORES; None (unbounded) where it is absent. Raises ValueError on anything else."""
    if text is None or not text.strip():
        return None
    try:
        cores = float(text)
    except ValueError:
        cores = math.nan
    if not (math.isfinite(cores) and cores > 0):
        raise ValueError(f"TANGRAM_CPU_CORES: {text!r} is not a positive number of cores; write for example 0.25")
    return cores
