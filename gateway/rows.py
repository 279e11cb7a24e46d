"""A worker's row in the memory of `gateway.counts`: how it is claimed, and who clears it when the worker is gone.

The memory is a file that all workers map. A worker owns a row by a lock on one byte of that file, which it holds for as
long as it lives. The kernel ends the lock with the process, however that died, and no other process can have it before:
so a row that is marked as claimed but not locked is a dead worker's, and whoever locks it may clear it. Living workers
look for such rows every moment (`Rows.bury`), and give their places back. A worker that only hangs keeps its row,
as it keeps its requests.

The locks are of the open file (OFD), so neither a fork nor another descriptor of the same file ends them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import struct
import threading
import zlib
from pathlib import Path
from typing import Final

from gateway import counts
from gateway.counts import Counts

#: Byte whose lock says who may claim rows; the rows' own bytes come before it.
_DOOR: Final = counts.ROWS
#: An atomic read-modify-write is a fence for all that comes before and after it on x86. Elsewhere a lock may keep
#: neither the store out of it nor the loads, but the second round cannot begin before the first has been seen.
_ROUNDS: Final = range(1 if platform.machine() in ("x86_64", "AMD64") else 2)


_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class TooManyWorkers(Exception):
    """All rows are claimed."""


class Rows:
    """The memory, and one row of it; raises OSError where the file cannot be made, and TooManyWorkers."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._lock(_DOOR, wait=True)
            # Not a file with holes: where the disk is full later on, a write to one of them would end the process.
            os.posix_fallocate(self._file, 0, counts.SIZE)
            self._cells = counts.cells(memoryview(mmap.mmap(self._file, counts.SIZE)))
            counts.prepare(self._cells, zlib.crc32(_BOOT.read_bytes()))
            self.row = self._claim()
            self._unlock(_DOOR)
            self._counts: Counts | None = None
        except BaseException:
            os.close(self._file)
            raise

    def counts(self) -> Counts:
        """The memory as this row's worker uses it."""
        lock = threading.Lock()

        def fence() -> None:
            for _ in _ROUNDS:
                lock.acquire()
                lock.release()

        self._counts = Counts(self._cells, self.row, fence)
        return self._counts

    def bury(self) -> list[int]:
        """Clear the rows of workers that have died; which those were. Takes note of those that have come, too."""
        if self._counts is not None:
            self._counts.meet()
        dead = []
        for row in counts.uncleared(self._cells):
            if row != self.row and self._lock(row):
                counts.clear(self._cells, row)
                self._unlock(row)
                dead.append(row)
        return dead

    def close(self) -> None:
        """Give the row back; what is still in flight is counted no more."""
        if self._counts is not None:
            self._counts.leave()
        counts.clear(self._cells, self.row)
        # By name: the mapping holds the file open, too.
        self._unlock(self.row)
        os.close(self._file)

    def _claim(self) -> int:
        for row in range(counts.ROWS):
            if self._lock(row):
                counts.open_row(self._cells, row)
                return row
        raise TooManyWorkers(f"{counts.ROWS} workers count together already; that is the most there can be")

    def _lock(self, byte: int, *, wait: bool = False) -> bool:
        """Whether the lock was gotten."""
        try:
            self._ask(fcntl.F_WRLCK, byte, wait=wait)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def _unlock(self, byte: int) -> None:
        self._ask(fcntl.F_UNLCK, byte, wait=False)

    def _ask(self, kind: int, byte: int, *, wait: bool) -> None:
        # struct flock of 64-bit Linux: type, whence, start, length, and a process id that must be 0 for these locks.
        flock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, flock)
