"""What the requests on the fast path of a worker share: known heads, ids, and one look at all deadlines from time to
time, in place of a timer for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gateway.answers import Answers
from gateway.outbox import Outbox
from gateway.plans import Planner
from gateway.proxy import Proxy

if TYPE_CHECKING:
    from gateway.lane import Lane
    from gateway.relay import Relay

_SWEEP_S: Final = 0.1
_TWO_DIGITS: Final = [b"%02x" % number for number in range(256)]


class FastPath:
    """What the connections of a worker share."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.engine = proxy.engine
        self.dispatcher = proxy.dispatcher
        self.tenants = proxy.dispatcher.tenants
        self.table = proxy.dispatcher.table
        self.timeouts = proxy.timeouts
        self.planner = Planner(proxy.dispatcher)
        self.plans = self.planner.exact
        self.answers = Answers()
        self.known = self.answers.exact
        self.active: set[Relay] = set()
        self.timed: dict[Lane, float] = {}
        """Connections that wait for bytes, and until when."""
        self._loop = asyncio.get_running_loop()
        self.outbox = Outbox(self._loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self.looking = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._prefix = proxy.new_id()[:16].encode("ascii")
        self._count = 0
        self._lead = b""
        """Of the ids that differ in their last two digits only."""

    def new_id(self) -> bytes:
        """A request id of our own: what is random in it is this worker's."""
        count = self._count
        if not count & 255:
            self._lead = b"%b%014x" % (self._prefix, count >> 8)
        self._count = count + 1
        return self._lead + _TWO_DIGITS[count & 255]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that takes a while."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- time ---

    def expect(self) -> None:
        """Something may take too long: look from time to time."""
        if not self.looking:
            self.looking = True
            self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self.looking = False
        now = monotonic()
        try:
            for relay in list(self.active):
                relay.check(now)
            for connection, due in list(self.timed.items()):
                if now >= due:
                    del self.timed[connection]
                    connection.expire()
        finally:
            if self.active or self.timed:
                self.expect()
