"""Connections of clients: aiohttp's, with what it leaves open closed.

- What the parser refuses is answered with a request id, and 431 where the head is too large.
- A head that is not whole in time, or grows too large, ends its connection: aiohttp itself would wait for it as long as
  for the next request, and hold what came.
- The parser mistakes the last trailer field of a request for a field of the next one. So a request in chunks ends its
  connection, unless nothing but the last chunk was the end of it.
- The parser drops what it was given together with, and after, a request for another protocol that it does not know
  (Java's client asks for h2c). So such a request ends its connection, unless it was all that came.
- Where the gateway ends a connection, it ends its own side first, so that its last answer is not lost to a reset.
- A client that leaves is noticed while nothing is read from it, too. While a body that nobody reads fills its buffers,
  the event loop does not look at the socket; so now and then the kernel is asked for the state of such connections.
- A client that ends only its own side gets what can be answered at once. Whether it has left or waits cannot be known,
  so after a moment it is taken to have left, and what was asked for it is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from http import HTTPStatus
from typing import Final

from aiohttp import StreamReader, web
from aiohttp.http import HttpRequestParser, RawRequestMessage
from aiohttp.http_exceptions import LineTooLong

from gateway import headers, heads
from gateway.exchange import SENT
from gateway.handover import Handover
from gateway.proxy import Proxy

log = logging.getLogger("gateway.app")

_MAX_LINE_BYTES: Final = 16 * 1024
_INET: Final = (socket.AF_INET, socket.AF_INET6)
_PLAIN_END: Final = b"\r\n0\r\n\r\n"
_LOOK_S: Final = 0.4
_LINGER_S: Final = 2.0
#: Linux' tcp_states.h: the peer has ended its side, or the connection is gone.
_GONE_STATES: Final = frozenset({4, 5, 6, 7, 8, 9, 11})


def _is_all(data: bytes, length: str | None) -> bool:
    """Whether a request with a body of that length is all of the data."""
    end = data.find(b"\r\n\r\n")
    return end >= 0 and len(data) == end + 4 + int(length or 0)


class ClientConnection(web.RequestHandler):
    """One connection of a client."""

    __slots__ = ("_answered", "_body", "_failed", "_head_bytes", "_head_timer", "_last", "_lingering")

    def __init__(self, manager: ClientServer, **options: object) -> None:
        super().__init__(manager, **options)  # type: ignore[arg-type]
        # Of requests that come in one piece, those before a malformed one are to be answered: the parser would give up
        # all of them. So it goes on to the next only once the one before has been taken.
        self._max_msg_queue_size = 1
        self._msg_queue_resume_size = 0
        # Made when something is to be parsed.
        self._parser = None
        self._body: StreamReader | None = None
        """Of the last request that came."""
        self._answered: StreamReader | None = None
        """Body of the last request that was answered."""
        self._failed = False
        """The parser gave up."""
        self._last = b""
        """The last bytes that came."""
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._lingering: asyncio.Transport | None = None

    @property
    def idle(self) -> bool:
        """Waiting for the next request."""
        return self._waiter is not None and not self._request_in_progress

    @property
    def _server(self) -> ClientServer:
        assert isinstance(self._manager, ClientServer)
        return self._manager

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._bound_stalls(transport)

    def _bound_stalls(self, transport: asyncio.BaseTransport) -> None:
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in _INET:
            # The rest of an answer to one that reads no more; nobody waits for that here.
            stall_ms = round(self._server.proxy.timeouts.stall_s * 1000)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, stall_ms)

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        if data:
            self._last = (self._last + data[-len(_PLAIN_END) :])[-len(_PLAIN_END) :]
        if self._parser is None and self._manager is not None:
            self._parser = HttpRequestParser(
                self,
                self._loop,
                self._read_bufsize,
                max_line_size=_MAX_LINE_BYTES,
                max_field_size=_MAX_LINE_BYTES,
                payload_exception=web.RequestPayloadError,
                auto_decompress=False,
                max_msg_queue_size=1,
            )
        unfinished = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        if unfinished and not self._messages and self._body is not None and self._body.is_eof():
            # The parser stops where a body ends, and holds what follows until it is asked again.
            super().data_received(b"")
        if self._messages:
            self._head_came()
            message, body = self._messages[-1]
            if isinstance(message, RawRequestMessage):
                self._body = body
                if message.upgrade and not self._upgraded and not _is_all(data, message.headers.get("Content-Length")):
                    self._messages[-1] = message._replace(should_close=True), body
            else:
                self._failed = True
                self._fail_body()
        elif data and self.idle and not self._upgraded and not self._force_close:
            self._head_bytes += len(data)
            if self._head_bytes > heads.MAX_HEAD_BYTES:
                self._refuse_head(431, f"the head of the request is larger than {heads.MAX_HEAD_BYTES} bytes")
            elif self._head_timer is None:
                self._head_timer = self._loop.call_later(
                    self._server.proxy.timeouts.head_s,
                    self._refuse_head,
                    408,
                    "the head of the request did not come in time",
                )

    def ended_plainly(self, body: StreamReader) -> bool:
        """Whether a body in chunks has ended without trailer fields, and nothing came after it.

        This parser takes the last trailer field of a request for a field of the request after it, so there must be none
        after it on this connection.
        """
        return self._body is body and body.is_eof() and not self._failed and self._last == _PLAIN_END

    def take_over(self) -> Handover | None:
        """What the fast path did with the request that is now handled; here there is no fast path."""
        return None

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """True keeps the connection open for the answer."""
        request = self._current_request
        if self._lingering is not None:
            return None
        if self._payload_parser is not None:
            self._payload_parser.feed_eof()
            return True
        waits = bool(self._messages) or self._waiter is None
        if not waits or (request is not None and not request.content.is_eof()):
            return None
        self._keepalive = False
        self._loop.call_later(self._server.proxy.timeouts.half_closed_s, self._half_closed)
        return True

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_came()
        super().connection_lost(exc)
        # A body knows its connection: without this, only the garbage collector would free the two.
        self._body = self._answered = self._lingering = None

    # --- its head ---

    def _head_came(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_head(self, status: int, text: str) -> None:
        self._head_timer = None
        if self.transport is None or not self.idle:
            return
        proxy = self._server.proxy
        proxy.dispatcher.meter.unroute(status)
        self._write_last(status, text, proxy.new_id())

    def _fail_body(self) -> None:
        """The parser gave up, maybe within a body: whoever reads that body would wait for ever."""
        body = self._body
        if body is None or body.is_eof():
            return
        if body is self._answered:
            # What reads it now only wants to be rid of it.
            body.feed_eof()
        else:
            body.set_exception(web.RequestPayloadError("the body is not valid HTTP"))

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        self._answered = request.content
        return await super().finish_response(request, resp, start_time)

    # --- its end ---

    def linger(self) -> None:
        """End our side once all is written, and drop what still comes for a while.

        To close a connection while the client sends resets it, and what was written last may be lost with it.
        """
        transport, self.transport = self.transport, None
        if transport is None or transport.is_closing():
            return
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        self._close = True
        self._lingering = transport
        self._loop.call_later(_LINGER_S, self._lingered)

    def _lingered(self) -> None:
        transport = self._lingering
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size():
            # Still on its way to a slow reader; the kernel ends that where nothing of it is taken.
            self._loop.call_later(_LINGER_S, self._lingered)
        else:
            transport.close()

    def force_close(self) -> None:
        super().force_close()
        if self._lingering is not None:
            self._lingering.abort()

    def _half_closed(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    @property
    def deaf(self) -> bool:
        """Whether nothing is read from the client at present."""
        return self._reading_paused or self._buffer_paused

    def look(self) -> None:
        """End the connection if its client left while nothing was read from it."""
        if self.transport is None or not self.deaf:
            return
        raw = self.transport.get_extra_info("socket")
        if raw is None or raw.family not in _INET:
            return
        try:
            state = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return
        if state in _GONE_STATES:
            self.transport.abort()

    # --- what the parser refuses ---

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun; another cannot be sent")
        proxy = self._server.proxy
        if isinstance(exc, LineTooLong) or (message or "").startswith("Too many headers"):
            status = 431
        request_id = headers.request_id(request.raw_headers) or proxy.new_id()
        proxy.dispatcher.meter.unroute(status)
        if status >= 500:
            log.error("a request failed within the gateway", exc_info=exc, extra={"request_id": request_id})
        if status == 431:
            text = f"the head of the request has a line of more than {_MAX_LINE_BYTES} bytes, or too many lines"
        elif status >= 500:
            text = "the gateway failed; its log says more"
        else:
            text = "the request is not valid HTTP"
        self._write_last(status, text, request_id)
        return SENT[False]

    def _write_last(self, status: int, text: str, request_id: str) -> None:
        """An answer to something that is of no protocol; then the end of the connection."""
        if self.transport is None or self.transport.is_closing():
            return
        body = json.dumps({"error": text}).encode() + b"\n"
        fields = [
            (b"Content-Type", b"application/json"),
            (b"X-Request-Id", request_id.encode("ascii")),
            (b"Content-Length", b"%d" % len(body)),
            (b"Connection", b"close"),
        ]
        head = headers.serialize(status, HTTPStatus(status).phrase.encode("ascii"), fields)
        self.transport.write(head + body)
        self.linger()


class ClientServer(web.Server):
    """Makes a `ClientConnection` for each that is accepted."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(
            proxy.handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=proxy.timeouts.idle_s,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            logger=log,
        )
        self.proxy = proxy
        self._looking: asyncio.TimerHandle | None = None

    def __call__(self) -> web.RequestHandler:
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)
        return self._connection()

    def _connection(self) -> ClientConnection:
        return ClientConnection(self, loop=self._loop, **self._kwargs)

    def _look(self) -> None:
        self._looking = None
        for connection in self.connections:
            if isinstance(connection, ClientConnection):
                connection.look()
        if self.connections:
            self._looking = self._loop.call_later(_LOOK_S, self._look)
