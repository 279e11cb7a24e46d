"""What the requests on the fast path of a worker share: known heads, ids, and one look at all deadlines from time to
time, in place of a timer for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, Protocol

from gateway.answers import Answers
from gateway.outbox import Outbox
from gateway.plans import Planner
from gateway.proxy import Proxy

_SWEEP_S: Final = 0.1


class Watched(Protocol):
    """A request in progress."""

    def check(self, now: float) -> None:
        """Look whether somebody has been waited for too long."""


class Timed(Protocol):
    """A connection that waits for bytes."""

    def expire(self) -> None:
        """They did not come in time."""


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
        self.active: set[Watched] = set()
        self.timed: dict[Timed, float] = {}
        """Connections that wait for bytes, and until when."""
        self._loop = asyncio.get_running_loop()
        self.outbox = Outbox(self._loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self.looking = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._prefix = proxy.new_id()[:16].encode("ascii")
        self._count = 0

    def new_id(self) -> bytes:
        """A request id of our own: what is random in it is this worker's."""
        self._count += 1
        return b"%b%016x" % (self._prefix, self._count)

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
