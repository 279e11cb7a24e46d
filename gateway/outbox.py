"""What the fast path writes in one turn of the event loop goes out at the end of that turn.

In a turn the loop reads from all sockets for which something has come, and most of what is read from one is to be
written to another. If each of those writes were made at once, each would wake the process that waits for it, only for
that to find little and to sleep again. So all is read first, and then all is written: whoever is at the other ends
finds more at a time, is woken less often, and asks for less in return. Nothing waits for what has not come yet: a
request that is alone in its turn goes out as soon as it was read.

Order is kept. Who writes to a transport by another way, or closes it, calls `flush` before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

#: What is larger goes out at once: to keep it would help nobody, and the answer to its write is wanted.
_LARGE: Final = 16 * 1024
#: So many writes do not wait for the end of a long turn.
_MOST: Final = 32


class Outbox:
    """The writes that wait for the end of this turn."""

    __slots__ = ("_due", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[tuple[asyncio.Transport, bytes | memoryview]] = deque()
        self._due = False
        """Whether `_end` will be called."""

    def put(self, transport: asyncio.Transport, data: bytes | memoryview) -> None:
        """Write this, in its turn."""
        waiting = self._waiting
        waiting.append((transport, data))
        if len(data) > _LARGE or len(waiting) >= _MOST:
            self.flush()
        elif not self._due:
            self._due = True
            self._loop.call_soon(self._end)

    def flush(self) -> None:
        """Write what waits, now; what was put for a transport that is closed by now is dropped."""
        waiting = self._waiting
        while waiting:
            transport, data = waiting.popleft()
            if not transport.is_closing():
                transport.write(data)

    def _end(self) -> None:
        self._due = False
        self.flush()
