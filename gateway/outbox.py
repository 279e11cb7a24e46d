"""What the fast path writes in one turn of the event loop goes out at the end of that turn.

In a turn the loop reads from all sockets for which something has come, and most of what is read from one is to be
written to another. If each of those writes were made at once, each would wake the process that waits for it, only for
that to find little and to sleep again. So all is read first, and then all is written: whoever is at the other ends
finds more at a time, is woken less often, and asks for less in return. Where a turn has several writes, more may have
come while it went on: so the loop looks once more, without waiting, and again as long as it finds some. Nothing waits
for what has not come yet.

While most turns have but one write, there is nothing to gain, and each is made at once; now and then a turn is counted,
to see whether that is still so.

Order is kept. Who writes to a transport by another way, or closes it, calls `flush` before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

#: What is larger goes out at once: to keep it would help nobody, and the answer to its write is wanted.
_LARGE: Final = 16 * 1024
#: So many writes do not wait for the end.
_MOST: Final = 32
#: How calm it must be for writes to be made at once, and how calm it can be: a turn with one write adds one, one with
#: several takes as many away.
_CALM: Final = 4
_CALMEST: Final = 12
#: Of writes that are made at once, one in so many begins a turn that is counted.
_SAMPLE: Final = 8


class Outbox:
    """The writes that wait for the end of this turn."""

    __slots__ = ("_calm", "_count", "_due", "_loop", "_seen", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Transport, bytes | memoryview]] = deque()
        self._due = False
        """Whether `_end` will be called."""
        self._count = 0
        """Writes in this turn; or since one was last counted."""
        self._seen = 0
        """Writes up to the last look."""
        self._calm = 0

    def put(self, transport: asyncio.Transport, data: bytes | memoryview) -> None:
        """Write this, in its turn."""
        self._count += 1
        if self._calm >= _CALM:
            if not transport.is_closing():
                transport.write(data)
            if not self._due and self._count >= _SAMPLE:
                self._begin()
            return
        waiting = self._waiting
        waiting.append((transport, data))
        if len(data) > _LARGE or len(waiting) >= _MOST:
            self.flush()
        if not self._due:
            self._begin()

    def flush(self) -> None:
        """Write what waits, now; what was put for a transport that is closed by now is dropped."""
        waiting = self._waiting
        while waiting:
            transport, data = waiting.popleft()
            if not transport.is_closing():
                transport.write(data)

    def _begin(self) -> None:
        self._due = True
        self._count = self._seen = 1
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        if self._count > self._seen:
            self._seen = self._count
            self._loop.call_soon(self._end)
            return
        self._due = False
        self._calm = min(self._calm + 1, _CALMEST) if self._count == 1 else max(self._calm - self._count, 0)
        self.flush()
