"""A request's passage to an endpoint and back: admit, send, stream the answer, and again elsewhere if need be.

What is decided, `Dispatcher` decides; what is here is the order of things and the moving of bytes. Each sending is an
`Attempt`; where the model is hedged (`gateway.race`), a slow one may have a rival, and the first answer counts.

When all attempts fail before the first byte of a response:
- the endpoint refused the connection: nothing was sent, so any request asks for a place again, for as long as it may
  wait in the queue. An endpoint that has just died thus costs time, not errors;
- the connection broke: the request is repeated if that is safe and its body is at hand, as often as the model allows;
  else 502. A repeat always goes over a new connection, and a rival counts as one. Where it can only go to the endpoint
  that has just broken, it waits a moment: a process that ends may take connections for a little longer than it answers;
- no answer came in time: 504, never repeated.
After the first byte there is no way back: the client's connection is cut, so that half an answer never looks whole.

A client may say how long it waits (`gateway.deadlines`); once that is over nothing more is done for it: it leaves the
queue, or its endpoint's work is cancelled, and the endpoint is not blamed.

The deadline of the first byte counts from the request's arrival, the queue included; while a body is still being
uploaded each part that moves gives it the whole time anew. Then it holds between the parts of the answer.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from time import monotonic
from typing import Final

import h11
from aiohttp import web

from gateway import headers
from gateway.attempt import FAULTS, Attempt, Outgoing
from gateway.body import Body
from gateway.engine import Engine
from gateway.exchange import Exchange
from gateway.handover import Handover
from gateway.leases import Lease, Outcome, Served
from gateway.meter import CLIENT_LEFT, Ending
from gateway.protocols import Route
from gateway.race import Race
from gateway.refusal import Refusal
from gateway.tunnel import Tunnel
from gateway.waiting import ANYONE, Claim

log = logging.getLogger("gateway.passage")

_FLUSH_BYTES: Final = 64 * 1024
#: Envoy's first repeat waits 25 ms at most; an ending process has closed its sockets by twice that.
_PAUSE_S: Final = 0.05
_LATE: Final = frozenset({Outcome.TIMED_OUT, Outcome.EXPIRED})


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
    """One request on its way to the endpoints of a model; `safe` says that it may be sent twice."""

    def __init__(
        self,
        engine: Engine,
        x: Exchange,
        route: Route,
        host: str,
        body: Body,
        served: Served,
        *,
        safe: bool,
        claim: Claim = ANYONE,
    ) -> None:
        entry = served.route.entry
        until = math.inf if x.until is None else x.until
        self.outgoing = Outgoing(
            x,
            route,
            host,
            body,
            timeout_s=entry.timeout_s,
            until=until,
            gives_up=min(x.arrival + entry.timeout_s, until),
            repeatable=safe and entry.retry_attempts > 0,
        )
        self._engine = engine
        self._x = x
        self._served = served
        self._claim = claim
        self._repeats_left = entry.retry_attempts if safe else 0
        # What is bound to one endpoint (by a key, or by a switch of protocols) has no business with another.
        self._hedge = entry.hedge if safe and not claim.key and not x.websocket else None
        self._entered: float | None = None
        self._fresh = False
        self._broke = ""
        """The endpoint that broke the last sending off."""
        self._failure = ""
        self._fault = 400

    def go_on(self, begun: Handover) -> None:
        """Go on where the fast path stopped."""
        self._entered = begun.entered
        self._repeats_left = max(0, self._repeats_left - begun.repeats)
        self._fresh, self._broke = begun.repeats > 0, begun.broke

    async def run(self, result: Result) -> web.StreamResponse:
        """Send the request until it is answered, and say in `result` how it ended."""
        x = self._x
        if self._hedge is not None:
            self._served.hedging.came(self._hedge, x.arrival)
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
            outcome = await self._send(place)
            if outcome in (Outcome.ANSWERED, Outcome.ERROR):
                result.end(Ending.COMPLETED, x.status)
                await x.drain()
                return x.sent()
            if x.status:
                result.end(Ending.FAILED, 504 if outcome in _LATE else 502)
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
            if outcome in _LATE:
                result.end(Ending.FAILED, 504)
                log.warning("no answer in time", extra=x.about())
                return x.refuse(504, f"model {x.model!r} gave no answer in time", "timeout")
            if self._repeats_left > 0 and self.outgoing.body.rewindable:
                self._repeats_left -= 1
                self._fresh, self._broke = True, x.replica
                self._hedge = None
                self._served.meter.retries += 1
                log.info("a request is repeated: %s", self._failure, extra=x.about())
                continue
            result.end(Ending.FAILED, 502)
            log.warning("no answer: %s", self._failure, extra=x.about())
            return x.refuse(502, f"a replica of model {x.model!r} gave no answer: {self._failure}", "bad_gateway")

    async def _admit(self) -> Lease | Refusal:
        out = self.outgoing
        return await self._engine.admit(
            self._served,
            nbytes=out.body.held or min(self._x.request.content_length or 0, _FLUSH_BYTES),
            gives_up=out.gives_up,
            entered=self._entered,
            wakes=out.route.wakes,
            claim=self._claim,
        )

    async def _send(self, lease: Lease) -> Outcome:
        """Send it, to a rival too if need be, and pass on what comes."""
        first = Attempt(self._engine, self.outgoing, lease, fresh=self._fresh)
        if self._hedge is None:
            try:
                if lease.endpoint.id == self._broke:
                    await asyncio.sleep(_PAUSE_S)
                    self._broke = ""
                await first.run()
                return await self._conclude(first, first.sent_at)
            finally:
                first.end()
        race = Race(self._engine, self.outgoing, first, self._hedge)
        try:
            attempt = await race.run()
            if race.hedged:
                self._repeats_left -= 1
                self._hedge = None
            self._x.replica = attempt.lease.endpoint.id
            return await self._conclude(attempt, first.sent_at)
        finally:
            race.end()

    async def _conclude(self, attempt: Attempt, sent_at: float) -> Outcome:
        """Pass on the answer, if there is one."""
        x = self._x
        try:
            if isinstance(attempt.answer, h11.InformationalResponse):
                x.switch(attempt.answer.headers.raw_items())
                await Tunnel(x, attempt.connection).run()
                attempt.outcome = Outcome.ANSWERED
            elif attempt.answer is not None:
                x.upstream_s = monotonic() - sent_at
                await self._stream(attempt, attempt.answer)
                attempt.outcome = Outcome.ERROR if x.status >= 500 else Outcome.ANSWERED
        except FAULTS as error:
            attempt.blame(error)
        self._failure, self._fault = attempt.failure, attempt.fault
        return attempt.outcome

    async def _stream(self, attempt: Attempt, response: h11.Response) -> None:
        x, out, connection = self._x, self.outgoing, attempt.connection
        bodiless = x.request.method == "HEAD" or response.status_code in (204, 304)
        parts = [self._head(response, bodiless=bodiless)]
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
                    connection.deadline = min(out.until, monotonic() + out.timeout_s)
                    following = await connection.receive()
            if isinstance(following, h11.Data):
                body.append(following.data)
                size += len(following.data)
            elif isinstance(following, h11.EndOfMessage):
                wanted = headers.wants_trailers(x.request.raw_headers)
                trailers = headers.trailers(following.headers.raw_items()) if wanted else []
                x.write(b"".join([*parts, x.frame(body), x.last(trailers)]))
                return

    def _head(self, response: h11.Response, *, bodiless: bool) -> bytes:
        length = next((int(value) for name, value in response.headers if name == b"content-length"), None)
        if response.status_code == 204:
            length = None
        return self._x.head(
            response.status_code,
            response.reason or headers.phrase(response.status_code),
            headers.downward(response.headers.raw_items()),
            length=length,
            bodiless=bodiless,
        )
