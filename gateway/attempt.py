"""One sending of a request to one endpoint: connect, send, wait for the head of the answer, and give the lease back.

An attempt ends in an `Outcome`, and its lease is given back with it in `end`, however it ended: answered, broken,
overtaken by another attempt, cancelled because the client left. While the request's body is still coming, a task of its
own sends it, so that an endpoint may answer before it has read all.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

import h11
from aiohttp import web

from gateway import headers
from gateway.body import Body, TooSlow
from gateway.engine import Engine
from gateway.exchange import Exchange
from gateway.leases import Lease, Outcome
from gateway.protocols import Answer, Route
from gateway.tenants import CREDENTIALS
from gateway.upstream import Broken, Connection, TimedOut, Unreachable


class _BadUpload(Exception):
    """The client's body ended early or was malformed."""


#: What may stop an attempt without being a fault of ours.
FAULTS = (Unreachable, Broken, TimedOut, h11.LocalProtocolError, _BadUpload)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as it is sent, to whichever endpoint."""

    x: Exchange
    route: Route
    host: str
    """Its Host field; empty: the endpoint's address."""
    body: Body
    timeout_s: float
    until: float
    """When the client waits no longer."""
    gives_up: float
    """When the first byte of an answer must have come."""
    repeatable: bool

    def head(self, lease: Lease) -> h11.Request:
        """What the endpoint of the lease is asked."""
        request = self.x.request
        host = self.host or f"{lease.endpoint.host}:{lease.endpoint.port}"
        chunked, length = self._framing()
        return h11.Request(
            method=request.method,
            target=self.route.target,
            headers=headers.upward(
                self.fields(),
                host=host.encode("utf-8", "surrogateescape"),
                client=self.x.peer,
                scheme=request.scheme,
                request_id=self.x.id,
                length=length,
                chunked=chunked,
                websocket=self.x.websocket,
            ),
        )

    def fields(self) -> headers.Fields:
        """Fields of the client's request that concern the model: its key is the gateway's alone."""
        fields = list(self.x.request.raw_headers)
        return fields if self.x.tenant is None else [f for f in fields if f[0].lower() not in CREDENTIALS]

    def _framing(self) -> tuple[bool, int | None]:
        if self.route.answer is Answer.BODY and self.body.complete:
            return False, self.body.held
        request = self.x.request
        if "Transfer-Encoding" in request.headers:
            return True, None
        length = request.content_length
        return False, None if length is None else length + self.body.grown


class Attempt:
    """A request on its way to the endpoint of one lease; `end` must follow."""

    def __init__(self, engine: Engine, outgoing: Outgoing, lease: Lease, *, fresh: bool = False) -> None:
        self.lease = lease
        self.began = monotonic()
        self.answer: h11.Response | h11.InformationalResponse | None = None
        """Head of the answer, once it is there; informational only where it switches protocols."""
        self.outcome = Outcome.ABANDONED
        """Until something else is known, it was given up."""
        self.failure = ""
        self.fault = 400
        """Status where the request itself is to blame."""
        self.sent_at = self.began
        self._engine = engine
        self._out = outgoing
        self._fresh = fresh
        self._connection: Connection | None = None
        self._reused = False
        self._upload: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def connection(self) -> Connection:
        """Over which the answer comes."""
        assert self._connection is not None
        return self._connection

    async def run(self) -> None:
        """Send the request and wait for the head of its answer; without one, `outcome` and `failure` say why."""
        try:
            self._connection = await self._connect()
            self._reused = self._connection.used > 0
            self._send(self._connection)
            self.answer = await self._head(self._connection)
        except FAULTS as error:
            self.blame(error)

    def blame(self, error: Exception) -> None:
        """One of FAULTS stopped it."""
        self.failure = str(error)
        if isinstance(error, Unreachable):
            self.outcome = Outcome.UNREACHABLE
        elif isinstance(error, Broken):
            self.outcome = Outcome.STALE if self._reused and self.answer is None else Outcome.BROKEN
        elif isinstance(error, TimedOut):
            if self.uploading and not self.connection.lagging:
                self.failure, self.fault = "the body of the request did not come in time", 408
            elif monotonic() >= self._out.until:
                self.failure, self.outcome = "the client's own deadline has passed", Outcome.EXPIRED
            else:
                self.outcome = Outcome.TIMED_OUT
        else:
            self.failure = f"the request cannot be forwarded: {error}"

    def end(self) -> None:
        """Give the lease back, with the outcome; once is enough."""
        if self._ended:
            return
        self._ended = True
        if self._upload is not None and not self._upload.done():
            self._upload.cancel()
        if self._connection is not None:
            if self.outcome in (Outcome.ANSWERED, Outcome.ERROR):
                self._connection.finish()
            else:
                self._connection.close()
        self._engine.release(self.lease, self.outcome)

    @property
    def uploading(self) -> bool:
        """Whether the request's body is still being sent part by part."""
        return self._upload is not None and not self._upload.done()

    async def _connect(self) -> Connection:
        endpoint = self.lease.endpoint
        pool = self._engine.pools.get(endpoint.id, endpoint.host, endpoint.port)
        if not self._fresh:
            connection = pool.reuse(monotonic(), self._out.repeatable)
            if connection is not None:
                return connection
        return await pool.connect()

    def _send(self, connection: Connection) -> None:
        """Send the head, and the body if it is here; else a task sends the body as it comes."""
        request = self._out.head(self.lease)
        whole = self._out.body.whole()
        self.sent_at = monotonic()
        connection.deadline = max(self._out.gives_up, self.sent_at)
        if whole is not None:
            if whole:
                connection.send(request, h11.Data(data=whole), h11.EndOfMessage())
            else:
                connection.send(request, h11.EndOfMessage())
            self._engine.dispatcher.sent(self.lease, self.sent_at)
            return
        connection.send(request)
        self._out.x.proceed()
        self._upload = asyncio.get_running_loop().create_task(self._send_body(connection))

    async def _send_body(self, connection: Connection) -> None:
        out = self._out
        try:
            async for part in out.body.parts():
                connection.send(h11.Data(data=part))
                connection.deadline = min(out.until, max(connection.deadline, monotonic() + out.timeout_s))
                await connection.drain()
            connection.send(h11.EndOfMessage())
            self._engine.dispatcher.sent(self.lease, monotonic())
        except (web.RequestPayloadError, ConnectionError, h11.LocalProtocolError) as error:
            connection.fail(_BadUpload(str(error)))
        except TooSlow as error:
            self.fault = 408
            connection.fail(_BadUpload(str(error)))

    async def _head(self, connection: Connection) -> h11.Response | h11.InformationalResponse:
        x = self._out.x
        while isinstance(event := await connection.receive(), h11.InformationalResponse):
            if event.status_code == 101:
                if not x.websocket:
                    raise Broken("the endpoint switched protocols unasked")
                break
            if event.status_code != 100:
                x.inform(
                    event.status_code, event.reason or headers.phrase(event.status_code), event.headers.raw_items()
                )
        assert isinstance(event, h11.Response | h11.InformationalResponse)
        self._engine.dispatcher.answering(self.lease, monotonic())
        return event
