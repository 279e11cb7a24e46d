"""A request's passage to an endpoint and back: admit, send, stream the answer, and again elsewhere if need be.

What is decided, `Dispatcher` decides; what is here is the order of things and the moving of bytes.

A request holds one lease at a time. An attempt ends in an `Outcome`, and the lease is given back with it in the one
`finally` of `_attempt`, however the attempt ended: answered, broken, cancelled because the client left. While the
request's body is still coming, a task of its own sends it, so that an endpoint may answer before it has read all.

When an attempt fails before the first byte of a response:
- the endpoint refused the connection: nothing was sent, so any request asks for a place again, for as long as it may
  wait in the queue. An endpoint that has just died thus costs time, not errors;
- the connection broke: the request is repeated if that is safe and its body is at hand, as often as the model allows;
  else 502. A repeat always goes over a new connection;
- no answer came in time: 504, never repeated.
After the first byte there is no way back: the client's connection is cut, so that half an answer never looks whole.

The deadline of the first byte counts from the request's arrival, the queue included; while a body is still being
uploaded each part that moves gives it the whole time anew. Then it holds between the parts of the answer.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic
from typing import Final

import h11
from aiohttp import web

from gateway import headers
from gateway.body import Body
from gateway.dispatch import Lease, Outcome, Refusal, Served
from gateway.engine import Engine
from gateway.exchange import Exchange
from gateway.meter import CLIENT_LEFT, Ending
from gateway.protocols import Answer, Route
from gateway.upstream import Broken, Connection, TimedOut, Unreachable

log = logging.getLogger("gateway.passage")

_FLUSH_BYTES: Final = 64 * 1024


class _BadUpload(Exception):
    """The client's body ended early or was malformed."""


@dataclass(slots=True)
class Result:
    """How a request ended; until something else is known, its client left."""

    ending: Ending = Ending.CANCELLED
    code: int = CLIENT_LEFT
    reason: str = ""

    def end(self, ending: Ending, code: int, reason: str = "") -> None:
        """It ended so."""
        self.ending, self.code, self.reason = ending, code, reason


class Passage:
    """One request on its way to the endpoints of a model."""

    def __init__(
        self, engine: Engine, x: Exchange, route: Route, host: str, body: Body, served: Served, *, repeatable: bool
    ) -> None:
        entry = served.route.entry
        self._engine = engine
        self._x = x
        self._route = route
        self._host = host
        self._body = body
        self._served = served
        self._timeout_s = entry.timeout_s
        self._gives_up = x.arrival + entry.timeout_s
        self._repeatable = repeatable
        self._repeats_left = entry.retry_attempts if repeatable else 0
        self._entered: float | None = None
        self._fresh = False
        self._loop = asyncio.get_running_loop()
        self._sent_at = 0.0
        self._failure = ""
        self._fault = 400
        """Status where the request itself is to blame."""

    async def run(self, result: Result) -> web.StreamResponse:
        """Send the request until it is answered, and say in `result` how it ended."""
        x = self._x
        while True:
            asked = monotonic()
            place = await self._admit()
            if isinstance(place, Refusal):
                waited = monotonic() - asked
                if self._served.route.usable:
                    x.queue_s += waited
                else:
                    x.start_s += waited
                ending = {404: Ending.REJECTED, 504: Ending.FAILED}.get(place.status, Ending.REFUSED)
                result.end(ending, place.status, place.reason)
                return x.refuse(place.status, place.message, place.reason, retry_after_s=place.retry_after_s)
            x.queue_s, x.start_s, x.replica = place.queue_s, place.start_s, place.endpoint.id
            outcome = await self._attempt(place)
            if outcome in (Outcome.ANSWERED, Outcome.ERROR):
                result.end(Ending.COMPLETED, x.status)
                await x.drain()
                return x.sent()
            if x.status:
                result.end(Ending.FAILED, 504 if outcome is Outcome.TIMED_OUT else 502)
                log.warning("an answer was cut short: %s", self._failure, extra=x.about())
                return x.cut()
            if outcome is Outcome.UNREACHABLE:
                if self._entered is None:
                    log.info("an endpoint cannot be reached, asking again: %s", self._failure, extra=x.about())
                    self._entered = place.since
                continue
            if outcome is Outcome.ABANDONED:
                result.end(Ending.REJECTED, self._fault)
                return x.refuse(self._fault, self._failure, "bad_request", close=True)
            if outcome is Outcome.TIMED_OUT:
                result.end(Ending.FAILED, 504)
                log.warning("no answer in time", extra=x.about())
                return x.refuse(504, f"model {x.model!r} gave no answer in time", "timeout")
            if self._repeats_left and self._body.rewindable:
                self._repeats_left -= 1
                self._fresh = True
                self._served.meter.retries += 1
                log.info("a request is repeated: %s", self._failure, extra=x.about())
                continue
            result.end(Ending.FAILED, 502)
            log.warning("no answer: %s", self._failure, extra=x.about())
            return x.refuse(502, f"a replica of model {x.model!r} gave no answer: {self._failure}", "bad_gateway")

    async def _admit(self) -> Lease | Refusal:
        return await self._engine.admit(
            self._served,
            nbytes=self._body.held or min(self._x.request.content_length or 0, _FLUSH_BYTES),
            gives_up=self._gives_up,
            entered=self._entered,
            wakes=self._route.wakes,
        )

    async def _attempt(self, lease: Lease) -> Outcome:
        outcome = Outcome.ABANDONED
        connection: Connection | None = None
        upload: asyncio.Task[None] | None = None
        stale_at = 0
        try:
            connection = await self._connect(lease)
            stale_at = connection.used
            upload = self._send(connection, self._request(lease))
            outcome = await self._receive(connection)
        except Unreachable as error:
            self._failure, outcome = str(error), Outcome.UNREACHABLE
        except Broken as error:
            self._failure = str(error)
            outcome = Outcome.STALE if stale_at and not self._x.status else Outcome.BROKEN
        except TimedOut as error:
            if upload is not None and not upload.done() and connection is not None and not connection.lagging:
                self._failure, self._fault = "the body of the request did not come in time", 408
            else:
                self._failure, outcome = str(error), Outcome.TIMED_OUT
        except (h11.LocalProtocolError, _BadUpload) as error:
            self._failure = f"the request cannot be forwarded: {error}"
        finally:
            if upload is not None and not upload.done():
                upload.cancel()
            if connection is not None:
                if outcome in (Outcome.ANSWERED, Outcome.ERROR):
                    connection.finish()
                else:
                    connection.close()
            self._engine.release(lease, outcome)
        return outcome

    async def _connect(self, lease: Lease) -> Connection:
        endpoint = lease.endpoint
        pool = self._engine.pools.get(endpoint.id, endpoint.host, endpoint.port)
        if not self._fresh:
            connection = pool.reuse(monotonic(), repeatable=self._repeatable)
            if connection is not None:
                return connection
        return await pool.connect()

    def _request(self, lease: Lease) -> h11.Request:
        request = self._x.request
        host = self._host or f"{lease.endpoint.host}:{lease.endpoint.port}"
        chunked, length = self._framing()
        return h11.Request(
            method=request.method,
            target=self._route.target,
            headers=headers.upward(
                request.raw_headers,
                host=host.encode("utf-8", "surrogateescape"),
                client=self._x.peer,
                scheme=request.scheme,
                request_id=self._x.id,
                length=length,
                chunked=chunked,
            ),
        )

    def _framing(self) -> tuple[bool, int | None]:
        if self._route.answer is Answer.BODY:
            return False, self._body.held
        request = self._x.request
        if "Transfer-Encoding" in request.headers:
            return True, None
        return False, request.content_length

    def _send(self, connection: Connection, request: h11.Request) -> asyncio.Task[None] | None:
        """Send the head, and the body if it is here; else a task sends the body as it comes."""
        whole = self._body.whole()
        connection.deadline = max(self._gives_up, monotonic())
        self._sent_at = monotonic()
        if whole is not None:
            if whole:
                connection.send(request, h11.Data(data=whole), h11.EndOfMessage())
            else:
                connection.send(request, h11.EndOfMessage())
            return None
        connection.send(request)
        self._x.proceed()
        return self._loop.create_task(self._upload(connection))

    async def _upload(self, connection: Connection) -> None:
        try:
            async for part in self._body.parts():
                connection.send(h11.Data(data=part))
                connection.deadline = max(connection.deadline, monotonic() + self._timeout_s)
                await connection.drain()
            connection.send(h11.EndOfMessage())
        except (web.RequestPayloadError, ConnectionError, h11.LocalProtocolError) as error:
            connection.fail(_BadUpload(str(error)))

    async def _receive(self, connection: Connection) -> Outcome:
        x = self._x
        while isinstance(event := await connection.receive(), h11.InformationalResponse):
            if event.status_code == 101:
                raise Broken("the endpoint switched protocols unasked")
            if event.status_code != 100:
                x.inform(event.status_code, event.reason or _phrase(event.status_code), event.headers.raw_items())
        assert isinstance(event, h11.Response)
        x.upstream_s = monotonic() - self._sent_at
        status = event.status_code
        bodiless = x.request.method == "HEAD" or status in (204, 304)
        parts = [self._head(event, bodiless=bodiless)]
        size = 0
        body: list[bytes] = []
        while True:
            following = connection.poll()
            if following is None or size >= _FLUSH_BYTES:
                parts.append(x.frame(body))
                x.write(b"".join(parts))
                parts, body, size = [], [], 0
                await x.drain()
                if following is None:
                    connection.deadline = monotonic() + self._timeout_s
                    following = await connection.receive()
            if isinstance(following, h11.Data):
                body.append(following.data)
                size += len(following.data)
            elif isinstance(following, h11.EndOfMessage):
                trailers = headers.trailers(following.headers.raw_items()) if self._trailers_wanted else []
                x.write(b"".join([*parts, x.frame(body), x.last(trailers)]))
                return Outcome.ERROR if status >= 500 else Outcome.ANSWERED

    @property
    def _trailers_wanted(self) -> bool:
        return headers.wants_trailers(self._x.request.raw_headers)

    def _head(self, response: h11.Response, *, bodiless: bool) -> bytes:
        length = next((int(value) for name, value in response.headers if name == b"content-length"), None)
        if response.status_code == 204:
            length = None
        return self._x.head(
            response.status_code,
            response.reason or _phrase(response.status_code),
            headers.downward(response.headers.raw_items()),
            length=length,
            bodiless=bodiless,
        )


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b"Unknown"
