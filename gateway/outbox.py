"""What the fast path writes in one turn of the event loop goes out at the end of that turn.

In a turn the loop reads from all sockets for which something has come, and most of what is read from one is to be
written to another. If each of those writes were made at once, each would wake the process that waits for it, only for
that to find little and to sleep again. So all is read first, and then all is written: whoever is at the other ends
finds more at a time, is woken less often, and asks for less in return. Where a turn has several writes, more may have
come while it went on: so the loop looks once more, without waiting, and again as long as it finds some. Nothing waits
for what has not come yet.

Neither is done where it gains nothing. While most turns have but one write, each is made at once; while most looks find
nothing, as between events that come at a pace, the first end of a turn is its end. Now and then one is tried all the
same, to see whether that is still so.

Order is kept. Who writes to a transport by another way, or closes it, calls `flush` before.
"""

from __future__ import annotations

import asyncio
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
#: How often looks have paid of late, at most: one that found something adds two, one that did not takes one away. At
#: nothing, only one turn in so many looks once more.
_MOST_PAID: Final = 8
_TRIAL: Final = 16


class Outbox:
    """The writes that wait for the end of this turn."""

    __slots__ = (
        "_at",
        "_calm",
        "_count",
        "_due",
        "_end_turn",
        "_loop",
        "_paid",
        "_parts",
        "_seen",
        "_unlooked",
        "_waiting",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: list[asyncio.Transport] = []
        self._parts: list[bytes | memoryview] = []
        """What each of them is to write."""
        self._at = 0
        """So many of them have."""
        self._due = False
        """Whether `_end` will be called."""
        self._count = 0
        """Writes in this turn; or since one was last counted."""
        self._seen = 0
        """Writes up to the last look."""
        self._calm = 0
        self._end_turn = self._end
        self._paid = _MOST_PAID
        self._unlooked = 0
        """Turns with several writes since a look."""

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
        waiting.append(transport)
        self._parts.append(data)
        if len(data) > _LARGE or len(waiting) >= _MOST:
            self.flush()
        if not self._due:
            self._begin()

    def flush(self) -> None:
        """Write what waits, now; what was put for a transport that is closed by now is dropped."""
        waiting, parts = self._waiting, self._parts
        # A write may lead to more, and to this.
        while (at := self._at) < len(waiting):
            self._at = at + 1
            transport = waiting[at]
            if not transport.is_closing():
                transport.write(parts[at])
        waiting.clear()
        parts.clear()
        self._at = 0

    def _begin(self) -> None:
        self._due = True
        self._count = self._seen = 1
        self._loop.call_soon(self._end_turn)

    def _end(self) -> None:
        if self._looks():
            self._seen = self._count
            self._loop.call_soon(self._end_turn)
            return
        self._due = False
        self._calm = min(self._calm + 1, _CALMEST) if self._count == 1 else max(self._calm - self._count, 0)
        self.flush()

    def _looks(self) -> bool:
        """Whether to look once more."""
        found = self._count > self._seen
        if self._seen > 1:
            self._paid = min(self._paid + 2, _MOST_PAID) if found else max(self._paid - 1, 0)
            return found
        if not found:
            return False
        if not self._paid and self._unlooked < _TRIAL:
            self._unlooked += 1
            return False
        self._unlooked = 0
        return True
