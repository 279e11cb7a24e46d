"""Bytes both ways once an endpoint has switched to WebSocket, uninterpreted.

Whichever side lags behind stops the reading of the other. A tunnel ends when the endpoint ends its connection, or a
moment after the client has ended its own, in which the endpoint may still say goodbye; and when nothing has moved for
an hour.
"""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.exchange import Exchange
from gateway.upstream import Connection, Sink

_IDLE_S: Final = 3600.0
_GOODBYE_S: Final = 2.0


class Tunnel(Sink):
    """Joins the client of an exchange and a connection; aiohttp feeds it what the client sends."""

    def __init__(self, x: Exchange, connection: Connection) -> None:
        self._x = x
        self._connection = connection
        self._client = x.request.protocol
        self._news = asyncio.Event()
        self._clogged = False
        self._moved = False
        self._client_ended = False
        self._ended = False

    async def run(self) -> None:
        """Until it ends. Raises ClientLeft where the client reads no more."""
        leftover = self._connection.switch(self)
        if leftover:
            self.received(leftover)
        self._client.set_parser(self)  # type: ignore[arg-type]
        while not self._ended:
            if self._clogged:
                await self._x.drain()
                self._clogged = False
                self._connection.resume_reading()
                continue
            self._news.clear()
            self._moved = False
            try:
                async with asyncio.timeout(_GOODBYE_S if self._client_ended else _IDLE_S):
                    await self._news.wait()
            except TimeoutError:
                if self._client_ended or not self._moved:
                    return
        await self._x.drain()

    # --- what the client sends (aiohttp's parser interface) ---

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes of the client."""
        self._moved = True
        self._connection.write(data)
        return False, b""

    def feed_eof(self) -> None:
        """The client has ended its side."""
        if not self._client_ended:
            self._client_ended = True
            self._connection.write_eof()
            self._news.set()

    # --- what the endpoint does (upstream.Sink) ---

    def received(self, data: bytes) -> None:
        """Bytes of the endpoint."""
        self._moved = True
        transport = self._client.transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if self._client.writing_paused and not self._clogged:
            self._clogged = True
            self._connection.pause_reading()
            self._news.set()

    def stalled(self) -> None:
        """The endpoint lags behind."""
        self._client.pause_reading()

    def writable(self) -> None:
        """The endpoint has caught up."""
        self._client.resume_reading()

    def ended(self, *, orderly: bool) -> None:
        """The endpoint has ended its side, or its connection is lost."""
        self._ended = True
        self._news.set()
