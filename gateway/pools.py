"""Pools of connections to endpoints: kept while idle, bounded, and a few opened ahead of the first request.

A `Pool` holds the idle connections of one endpoint, the last used on top. A server may close an idle connection just
as a request is sent on it, and then nobody knows whether the request was read. So a request that is not safe to repeat
takes only a connection that has been idle for less than half of the server's keep-alive: what its `Keep-Alive` header
says, else the 5 s that are usual.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Final, cast

from gateway.upstream import Connection, Unreachable

_CONNECT_TIMEOUT_S: Final = 2.0
_MAX_IDLE: Final = 64
_SWEEP_S: Final = 15.0
#: Connections that are opened to an endpoint as soon as it is there, and how many are being opened at a time.
AHEAD: Final = 2
_OPENING: Final = 64


class Pool:
    """Connections of one endpoint."""

    def __init__(self, host: str, port: int, on_idle: Callable[[], None]) -> None:
        self.host = host
        self.port = port
        self.open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._on_idle = on_idle
        self._closed = False
        self.prepared = False
        """Whether connections have been opened ahead."""

    def __repr__(self) -> str:
        return f"<Pool {self.host}:{self.port}: {self.idle} idle of {len(self.open)}>"

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def reuse(self, now: float, repeatable: bool) -> Connection | None:
        """An idle connection that the request may take."""
        idle = self._idle
        while idle:
            connection = idle[-1]
            if connection.usable(now, repeatable):
                idle.pop()
                connection.idle_since = None
                return connection
            if connection.usable(now, True):
                return None
            idle.pop()
            connection.close()
        return None

    async def connect(self) -> Connection:
        """A new connection; raises Unreachable."""
        loop = asyncio.get_running_loop()
        connection = Connection(self, loop)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: cast(asyncio.BaseProtocol, connection), self.host, self.port)
        except TimeoutError:
            connection.close()
            raise Unreachable(f"no connection within {_CONNECT_TIMEOUT_S:g} s") from None
        except OSError as error:
            raise Unreachable(f"no connection: {error.strerror or error}") from None
        except asyncio.CancelledError:
            connection.close()
            raise
        return connection

    def keep(self, connection: Connection) -> None:
        """Hold an idle connection for the next request; where there are enough, the one unused for longest goes."""
        if self._closed:
            connection.close()
            return
        idle = self._idle
        idle.append(connection)
        if len(idle) == 1:
            self._on_idle()
        elif len(idle) > _MAX_IDLE:
            idle.pop(0).close()

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        self.open.discard(connection)
        if connection.idle_since is not None and connection in self._idle:
            self._idle.remove(connection)

    async def prepare(self) -> None:
        """Open a connection ahead of the first request, if that can be done."""
        with suppress(Unreachable):
            connection = await self.connect()
            # An endpoint that closes it is no more to blame than for one that it has answered on.
            connection.used += 1
            connection.give_back(None, monotonic())

    def sweep(self, now: float) -> None:
        """Close what has been idle for too long."""
        for connection in [c for c in self._idle if not c.usable(now, True)]:
            connection.close()

    def settle(self, *, leaving: bool) -> None:
        """Follow the endpoint: one that is leaving needs no idle connections; it may come back."""
        if leaving:
            self.close()
        else:
            self._closed = False

    def close(self) -> None:
        """Close idle connections now, the others when they are done."""
        self._closed = True
        for connection in list(self._idle):
            connection.close()


class Pools:
    """One pool an endpoint, made when first wanted."""

    def __init__(self) -> None:
        self._pools: dict[str, Pool] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()

    def get(self, id: str, host: str, port: int) -> Pool:
        """The pool of an endpoint; a new one where its address has changed."""
        pool = self._pools.get(id)
        if pool is None or pool.port != port or pool.host != host:
            if pool is not None:
                pool.close()
            pool = self._pools[id] = Pool(host, port, self._expect_sweep)
        return pool

    def retain(self, leaving: Mapping[str, bool]) -> None:
        """Close the pools of all other endpoints, and keep no connections to those that are leaving.

        A server that is told to end may wait for its connections to do so first.
        """
        for id in [id for id in self._pools if id not in leaving]:
            self._pools.pop(id).close()
        for id, pool in self._pools.items():
            pool.settle(leaving=leaving[id])

    def prepare(self, endpoints: Iterable[tuple[str, str, int]]) -> None:
        """Open a few connections to endpoints that are new, given as (id, host, port)."""
        for id, host, port in endpoints:
            pool = self.get(id, host, port)
            if pool.prepared or pool.open or len(self._opening) >= _OPENING:
                continue
            pool.prepared = True
            for _ in range(AHEAD):
                task = asyncio.get_running_loop().create_task(pool.prepare())
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)

    def counts(self) -> dict[str, tuple[int, int]]:
        """Endpoint id -> (connections busy, connections idle)."""
        return {id: (len(pool.open) - pool.idle, pool.idle) for id, pool in self._pools.items()}

    def close(self) -> None:
        """Close all connections, busy ones included."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for task in self._opening:
            task.cancel()
        for pool in self._pools.values():
            pool.close()
            for connection in list(pool.open):
                connection.close()
        self._pools.clear()

    def _expect_sweep(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeper = None
        now = monotonic()
        for pool in self._pools.values():
            pool.sweep(now)
        if any(pool.idle for pool in self._pools.values()):
            self._expect_sweep()
