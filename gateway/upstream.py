"""Connections to endpoints: kept, bounded, and with back-pressure both ways.

A `Connection` carries one request after the other. h11 parses what comes and checks what goes; this module moves the
bytes. Reading pauses while the one who asks for events lags behind, `drain` waits while the endpoint does.

The time a wait may take is a *deadline* on the connection, not a timer a wait: one timer is armed per connection and,
when it fires too early because the deadline has moved on, it is armed again.

Who reads and writes HTTP by himself borrows a connection (`ask`, `give_back`) and is its `Sink` meanwhile.

How a response's end is known (RFC 9112, section 6.3): by its length, by chunks, or by the end of the connection. In
the last case only an orderly end counts; a reset is an error. Both a length and chunks are an error too: whoever sends
them may be understood differently by the next reader.
"""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

import h11

from gateway.outbox import Outbox

if TYPE_CHECKING:
    from gateway.pools import Pool

_HIGH_WATER: Final = 128 * 1024
_MAX_HEAD: Final = 64 * 1024
_ASSUMED_KEEPALIVE_S: Final = 5.0
_MAX_IDLE_S: Final = 60.0
_KEEPALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,6})", re.IGNORECASE)


class UpstreamError(Exception):
    """No answer, or no whole answer, from an endpoint."""


class Unreachable(UpstreamError):
    """No connection could be made; nothing was sent."""


class Broken(UpstreamError):
    """The connection broke, or what came over it was not a valid response."""


class TimedOut(UpstreamError):
    """The deadline passed while waiting for the endpoint."""


class Sink:
    """Who takes the bytes of a connection as they come: it was lent, or has switched protocols."""

    def received(self, data: bytes) -> None:
        """Bytes came."""
        raise NotImplementedError

    def stalled(self) -> None:
        """The endpoint is behind in reading what was written."""
        raise NotImplementedError

    def writable(self) -> None:
        """What was written has gone."""
        raise NotImplementedError

    def ended(self, *, orderly: bool) -> None:
        """No more will come: the other side said so, or the connection is lost."""
        raise NotImplementedError


class Connection:
    """One connection; `gateway.pools.Pool.connect` makes it."""

    def __init__(self, pool: Pool, loop: asyncio.AbstractEventLoop) -> None:
        self.pool = pool
        self.used = 0
        """Requests that were begun on it."""
        self.deadline = 0.0
        """When a wait for the endpoint ends with TimedOut, by the loop's clock."""
        self.idle_since: float | None = None
        self._loop = loop
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        self._transport: asyncio.Transport | None = None
        self._keepalive_s = _ASSUMED_KEEPALIVE_S
        self._failure: BaseException | None = None
        self._ended = False
        """Whether the other side has sent all that it will."""
        self._unread = 0
        self._reading_paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._drainer: asyncio.Future[None] | None = None
        self._writing_paused = False
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0
        self._sink: Sink | None = None
        self._closed = False
        self._outbox: Outbox | None = None
        """Where parts of an earlier request may wait that was written as it is."""

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._closed:
            # Whoever wanted it left while it was being made.
            self._transport.abort()
        else:
            self.pool.open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.received(data)
            return
        if self.idle_since is not None:
            self.close()
            return
        self._unread += len(data)
        self._http.receive_data(data)
        if self._unread > _HIGH_WATER:
            self.pause_reading()
        self._notify()

    def eof_received(self) -> bool:
        if self._sink is not None:
            self._sink.ended(orderly=True)
        elif self.idle_since is None and self._failure is None:
            self._ended = True
            self._http.receive_data(b"")
            self._notify()
        return False

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        if self._failure is None:
            self._failure = Broken("the connection was reset" if exc else "the connection was closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._notify()
        self._release_drainer()
        self.pool.lost(self)
        if self._sink is not None:
            self._sink.ended(orderly=False)

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self._sink is not None:
            self._sink.stalled()

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._release_drainer()
        if self._sink is not None:
            self._sink.writable()

    # --- sending ---

    def send(self, *events: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        """Send events of a request in one write; h11.LocalProtocolError where they are not valid HTTP."""
        if isinstance(events[0], h11.Request):
            self.used += 1
            if self._outbox is not None:
                self._outbox.flush()
        parts: list[bytes] = []
        for event in events:
            parts += cast("list[bytes]", self._http.send_with_data_passthrough(event) or [])
        if self._transport is not None and parts:
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    @property
    def lagging(self) -> bool:
        """Whether the endpoint is behind in reading what was sent."""
        return self._writing_paused

    async def drain(self) -> None:
        """Wait until the endpoint has read enough of what was sent; returns too when the connection is gone."""
        if self._writing_paused and self._transport is not None:
            self._drainer = self._loop.create_future()
            try:
                await self._drainer
            finally:
                self._drainer = None

    def _release_drainer(self) -> None:
        if self._drainer is not None and not self._drainer.done():
            self._drainer.set_result(None)

    # --- receiving ---

    def poll(self) -> h11.Event | None:
        """The next event of the response if it is here; raises Broken or what `fail` was given."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            # The parser's own words are for those who know the parser.
            told = "the connection ended before a whole answer" if self._ended else "what came is not a valid answer"
            raise Broken(told) from error
        if event is h11.NEED_DATA:
            self._unread = 0
            if self._failure is not None:
                raise self._failure
            return None
        if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            raise Broken("the connection was closed")
        if isinstance(event, h11.Response):
            self._inspect(event)
        return cast(h11.Event, event)

    async def receive(self) -> h11.Event:
        """The next event of the response; raises TimedOut at the deadline, Broken, or what `fail` was given."""
        while True:
            event = self.poll()
            if event is not None:
                return event
            self.resume_reading()
            if self._timer is None:
                self._arm()
            elif self._timer_at > self.deadline:
                self._timer.cancel()
                self._arm()
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def fail(self, error: BaseException) -> None:
        """Make `receive` raise the error, once what has come is read."""
        if self._failure is None:
            self._failure = error
        self._notify()

    def _inspect(self, response: h11.Response) -> None:
        if sum(len(name) + len(value) + 4 for name, value in response.headers) > _MAX_HEAD:
            raise Broken(f"the head of the response is larger than {_MAX_HEAD} bytes")
        names = [name for name, _ in response.headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            raise Broken("the response has both Content-Length and Transfer-Encoding")
        for name, value in response.headers:
            if name == b"keep-alive" and (match := _KEEPALIVE_TIMEOUT.search(value)):
                self._keepalive_s = float(match[1])

    def _notify(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self) -> None:
        # The time is kept here: uvloop gives a handle without one where that is now.
        self._timer_at = self.deadline
        self._timer = self._loop.call_at(self.deadline, self._check_deadline)

    def _check_deadline(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if monotonic() < self.deadline:
            self._arm()
        else:
            self._waiter.set_exception(TimedOut("no answer in time"))

    # --- bytes as they are ---

    def ask(self, sink: Sink, request: bytes, outbox: Outbox) -> None:
        """Write a request; all that comes until the connection is given back goes to `sink`."""
        self._sink = sink
        self._outbox = outbox
        self.used += 1
        self.put(request, outbox)
        if self._transport is None:
            sink.ended(orderly=False)

    def put(self, data: bytes | memoryview, outbox: Outbox) -> None:
        """More of a request that was begun so."""
        if self._transport is not None:
            outbox.put(self._transport, data)

    def give_back(self, keepalive_s: float | None, now: float) -> None:
        """A borrowed connection is idle again; the endpoint may have said how long it keeps such."""
        self._sink = None
        transport = self._transport
        if keepalive_s is not None:
            self._keepalive_s = keepalive_s
        if transport is None or transport.is_closing():
            self.close()
            return
        if self._reading_paused:
            self.resume_reading()
        self.idle_since = now
        self.pool.keep(self)

    def switch(self, sink: Sink) -> bytes:
        """Give all that comes from now on to `sink`; returns what came already."""
        self._sink = sink
        if self._transport is None:
            sink.ended(orderly=False)
        self.resume_reading()
        return self._http.trailing_data[0]

    def write(self, data: bytes | memoryview) -> None:
        """Bytes, as they are."""
        if self._transport is not None:
            self._transport.write(data)

    def write_eof(self) -> None:
        """End our side once all is written."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def pause_reading(self) -> None:
        """Take nothing more for now."""
        if self._transport is not None and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on after `pause_reading`."""
        if self._transport is not None and self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    # --- its life ---

    def usable(self, now: float, repeatable: bool) -> bool:
        """Whether the next request may go out on this idle connection."""
        transport, since = self._transport, self.idle_since
        if transport is None or since is None or transport.is_closing():
            return False
        return now - since < (_MAX_IDLE_S if repeatable else self._keepalive_s / 2)

    def finish(self) -> None:
        """The exchange is over: keep the connection if both sides are done with it and allow another, else close it."""
        http = self._http
        if (
            self._transport is not None
            and not self._transport.is_closing()
            and self._failure is None
            and http.our_state is h11.DONE
            and http.their_state is h11.DONE
            and http.trailing_data == (b"", False)
        ):
            http.start_next_cycle()
            self._unread = 0
            self.resume_reading()
            self.idle_since = monotonic()
            self.pool.keep(self)
        else:
            self.close()

    def close(self) -> None:
        """Close at once, whatever is in flight; nobody is told."""
        self._closed = True
        self._sink = None
        self.pool.lost(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
