"""The client's side of one request: what is known of it, and the writing of its answer.

Answers are written to the client's transport as they are, so that informational responses, trailers and the end of a
body are under the gateway's control; aiohttp is told only that the answer has been sent.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol, cast

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion10, HttpVersion11

from gateway import headers, heads
from gateway.handover import Handover
from gateway.protocols import ErrorShape, plain_error
from gateway.tenants import Tenant

_ABSOLUTE: Final = re.compile(r"https?://([^/?#]+)(.*)", re.IGNORECASE | re.DOTALL)


class ClientLeft(Exception):
    """The client's connection is gone, or it reads no more."""


class BadTarget(ValueError):
    """A request target that cannot be forwarded."""


class _Sent(web.StreamResponse):
    """Tells aiohttp that an answer has been written, and whether the connection may take another request."""

    def __init__(self, keep_alive: bool) -> None:
        super().__init__()
        self._keep = keep_alive

    @property
    def keep_alive(self) -> bool:
        return self._keep

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return


#: What to return to aiohttp once an answer is written, by whether the connection may take another request.
SENT: Final = {keep_alive: _Sent(keep_alive) for keep_alive in (True, False)}


class Connected(Protocol):
    """What a client's connection can do besides what aiohttp knows of."""

    def linger(self) -> None:
        """End it such that what was written arrives."""

    def ended_plainly(self, body: StreamReader) -> bool:
        """Whether another request may follow one whose body came in chunks."""

    def take_over(self) -> Handover | None:
        """What the fast path did with the request that is now handled, if it began it."""


class Exchange:
    """A client's request and the state of its answer."""

    def __init__(
        self, request: web.BaseRequest, request_id: str, arrival: float, *, closing: bool, stall_s: float
    ) -> None:
        self.request = request
        self.id = request_id
        self.arrival = arrival
        self.shape: ErrorShape = plain_error
        self.model = ""
        self.replica = ""
        self.queue_s = 0.0
        self.start_s = 0.0
        self.upstream_s: float | None = None
        self.status = 0
        """Of the final response; 0 until its head is written."""
        self.keep_alive = request.keep_alive and not closing
        self.http11 = request.version >= HttpVersion11
        self.tenant: Tenant | None = None
        self.until: float | None = None
        """When the client, by its own account, waits no longer."""
        self.websocket = request.method == "GET" and self.http11 and headers.wants_websocket(request.raw_headers)
        self.begun: Handover | None = None
        """What the fast path did with it, until that is taken over."""
        self._stall_s = stall_s
        self._chunked = False
        self._proceeded = False

    @property
    def _client(self) -> Connected:
        return cast(Connected, self.request.protocol)

    @property
    def peer(self) -> str:
        """The client's address."""
        return self.request.remote or "unknown"

    def about(self) -> dict[str, object]:
        """Fields of a log line that concerns it."""
        return {"request_id": self.id, "model": self.model, "replica": self.replica}

    def origin_form(self) -> tuple[str, str]:
        """(target in origin-form, authority); raises BadTarget."""
        target, host = self.request.raw_path, self.request.headers.get("Host", "")
        if not target.startswith("/"):
            match = _ABSOLUTE.fullmatch(target)
            if match is None:
                raise BadTarget(f"the request target {target[:100]!r} names no path here")
            host, target = match[1].rpartition("@")[2], match[2]
            if not host:
                raise BadTarget("the request target names no host")
            if not target.startswith("/"):
                target = "/" + target
        if not heads.is_authority(host):
            raise BadTarget(f"{host[:100]!r} is not a host with a port")
        if "#" in target or not target.isascii():
            raise BadTarget("the request target holds characters that must be percent-encoded")
        path = target.partition("?")[0].lower().replace("%2e", ".")
        if "/." in path and any(part in (".", "..") for part in path.split("/")):
            raise BadTarget("the request target holds dot segments; send the path they lead to")
        return target, host

    # --- writing ---

    def write(self, data: bytes) -> None:
        """Bytes to the client; ClientLeft where it is gone."""
        transport = self.request.transport
        if transport is None or transport.is_closing():
            raise ClientLeft
        transport.write(data)

    async def drain(self) -> None:
        """Wait until the client has read enough; ClientLeft where it does not."""
        if not self.request.protocol.writing_paused:
            return
        try:
            async with asyncio.timeout(self._stall_s):
                await self.request.writer.drain()
        except (ConnectionError, TimeoutError):
            raise ClientLeft from None

    def proceed(self) -> None:
        """Answer `Expect: 100-continue`: the body is wanted now."""
        expect = self.request.headers.get("Expect", "")
        if expect.lower() == "100-continue" and self.http11 and not self._proceeded:
            self._proceeded = True
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def inform(self, status: int, reason: bytes, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Pass an informational response on."""
        if self.http11:
            self.write(headers.serialize(status, reason, headers.downward(fields)))

    def switch(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Tell the client that it now speaks WebSocket with the endpoint."""
        self.status = 101
        self.keep_alive = False
        out = [*headers.TO_WEBSOCKET, *headers.downward(fields), (b"X-Request-Id", self.id.encode("ascii"))]
        self.write(headers.serialize(101, b"Switching Protocols", out))

    def head(self, status: int, reason: bytes, fields: headers.Fields, *, length: int | None, bodiless: bool) -> bytes:
        """The head of the final response; `length` None for a body of unknown length."""
        self.status = status
        fields.append((b"X-Request-Id", self.id.encode("ascii")))
        if self.model:
            fields.append((b"Server-Timing", timing(self.queue_s, self.start_s, self.upstream_s)))
        if length is not None:
            fields.append((b"Content-Length", b"%d" % length))
        elif not bodiless:
            self._chunked = self.http11
            if self._chunked:
                fields.append((b"Transfer-Encoding", b"chunked"))
            else:
                self.keep_alive = False
        if "Transfer-Encoding" in self.request.headers and not self._client.ended_plainly(self.request.content):
            self.keep_alive = False
        if not self.keep_alive:
            fields.append((b"Connection", b"close"))
        elif self.request.version == HttpVersion10:
            fields.append((b"Connection", b"keep-alive"))
        return headers.serialize(status, reason, fields)

    def frame(self, parts: list[bytes]) -> bytes:
        """Parts of the body as they go over the connection."""
        data = b"".join(parts)
        if self._chunked and data:
            return b"%x\r\n%s\r\n" % (len(data), data)
        return data

    def last(self, trailers: headers.Fields) -> bytes:
        """The end of the body."""
        if not self._chunked:
            return b""
        return b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n"

    def sent(self) -> web.StreamResponse:
        """What to return to aiohttp when the answer is written."""
        if not self.keep_alive:
            self._linger()
        return SENT[self.keep_alive]

    def _linger(self) -> None:
        content = self.request.content
        if not content.is_eof():
            # Or aiohttp would wait for the rest of it.
            content.feed_eof()
        self._client.linger()

    def cut(self) -> web.StreamResponse:
        """End the connection within the answer, such that the client sees that it is not whole."""
        self.keep_alive = False
        transport = self.request.transport
        if transport is not None and not self._chunked and not self.http11:
            # Where only the end of the connection ends the body, nothing but a reset says that it ended too early.
            raw = transport.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        else:
            self._linger()
        return SENT[False]

    def abandon(self) -> web.StreamResponse:
        """End the connection of a client that left, or that reads no more: what is still to be written is dropped."""
        if self.request.transport is not None:
            self.request.transport.abort()
        return SENT[False]

    def answer(
        self, status: int, document: object, *, retry_after_s: int | None = None, close: bool = False
    ) -> web.StreamResponse:
        """The gateway's own answer, a JSON document."""
        body = json.dumps(document).encode() + b"\n"
        fields = own_fields(status, retry_after_s)
        if close or (not self._proceeded and "Expect" in self.request.headers and not self.request.content.is_eof()):
            # A client that waits for 100 may send its body or not: only the end of the connection is unambiguous.
            self.keep_alive = False
        if self.request.content.exception() is not None:
            # Where the body is malformed, nobody knows where the next request begins.
            self.keep_alive = False
        head = self.head(status, HTTPStatus(status).phrase.encode(), fields, length=len(body), bodiless=False)
        self.write(head if self.request.method == "HEAD" else head + body)
        return self.sent()

    def refuse(
        self, status: int, message: str, reason: str, *, retry_after_s: int | None = None, close: bool = False
    ) -> web.StreamResponse:
        """An error, in the protocol's shape."""
        return self.answer(status, self.shape(status, message, reason), retry_after_s=retry_after_s, close=close)


def own_fields(status: int, retry_after_s: int | None) -> headers.Fields:
    """Fields of an answer of the gateway's own, without those that every answer has."""
    fields: headers.Fields = [
        (b"Content-Type", b"application/json"),
        (b"Date", formatdate(usegmt=True).encode("ascii")),
    ]
    if status == 401:
        fields.append((b"WWW-Authenticate", b"Bearer"))
    if retry_after_s is not None:
        fields.append((b"Retry-After", b"%d" % retry_after_s))
    return fields


def timing(queue_s: float, start_s: float, upstream_s: float | None) -> bytes:
    """The field Server-Timing."""
    text = f"queue;dur={queue_s * 1e3:.1f}, start;dur={start_s * 1e3:.1f}"
    if upstream_s is not None:
        text += f", upstream;dur={upstream_s * 1e3:.1f}"
    return text.encode("ascii")
