"""A client's connection with the fast path in front: aiohttp's, whose bytes go through a `Lane` first.

The lane is the event loop's protocol, so a plain request never meets this class; it is what the lane gives all other
requests to, and what aiohttp and the worker know the connection by.
"""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp.base_protocol import BaseProtocol
from aiohttp.tcp_helpers import tcp_keepalive

from gateway.clients import ClientConnection, ClientServer
from gateway.handover import Handover
from gateway.lane import Lane
from gateway.relays import FastPath


class FastConnection(ClientConnection):
    """A connection of a client with the fast path in front."""

    __slots__ = ("lane",)

    def __init__(self, manager: ClientServer, fast: FastPath, **options: object) -> None:
        super().__init__(manager, **options)
        self.lane = Lane(self, fast)

    @property
    def idle(self) -> bool:
        """Waiting for the next request."""
        if self.lane.busy:
            return False
        return super().idle or (not self._request_count and not self._request_in_progress)

    @property
    def deaf(self) -> bool:
        return self.lane.held or super().deaf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As aiohttp does it, but for its task: most connections never need one."""
        made = cast(asyncio.Transport, transport)
        BaseProtocol.connection_made(self, made)
        tcp_keepalive(made)
        self._server.connection_made(self, made)
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        self._bound_stalls(transport)
        self.lane.transport = made
        made.set_protocol(cast(asyncio.BaseProtocol, self.lane))

    # --- gateway.lane.FullPath ---

    @property
    def at_work(self) -> bool:
        """Whether it handles a request."""
        return self._waiter is None or self._waiter.done()

    @property
    def holds(self) -> bool:
        """Whether it wants nothing to be read at present."""
        return self._reading_paused or self._buffer_paused

    def begin(self) -> None:
        """Get to work: aiohttp's task, which handles requests until the connection is to end."""
        self._task_handler = self._loop.create_task(self.start())

    def clean(self) -> bool:
        """Whether the parser holds nothing, although it was not clear where its last request ends."""
        return self._body is not None and self.idle and self.ended_plainly(self._body)

    def introduced(self) -> bytes:
        """What is said of the client to endpoints, up to the name of the field for a request's id."""
        peer = self.peername
        address = peer[0] if isinstance(peer, tuple) else str(peer or "unknown")
        scheme = b"https" if self.ssl_context else b"http"
        return b"\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Request-Id: " % (
            address.encode("ascii", "replace"),
            scheme,
        )

    def half_close(self) -> None:
        """The client has ended its side, with a request in progress in the lane."""
        self._loop.call_later(self._server.proxy.timeouts.half_closed_s, self._half_closed)

    # --- its end ---

    def take_over(self) -> Handover | None:
        return self.lane.take_over()

    def linger(self) -> None:
        self.lane.fast.outbox.flush()
        self.lane.transport = None
        super().linger()

    def force_close(self) -> None:
        self.lane.fast.outbox.flush()
        self.lane.transport = None
        super().force_close()

    def close(self) -> None:
        if self.lane.answering:
            self.lane.closing = True
        else:
            self.lane.fast.outbox.flush()
            super().close()

    def _process_keepalive(self) -> None:
        since = self._loop.time() if self.lane.busy else self.lane.answered_at
        self._next_keepalive_close_time = max(self._next_keepalive_close_time, since + self._keepalive_timeout)
        super()._process_keepalive()
        if self._keepalive_handle is None and not self.lane.started:
            self.force_close()
