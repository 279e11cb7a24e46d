"""One request on the fast path, from its lease to the end of its answer: bytes from one connection to the other.

A `Relay` does what a `Passage` does on the full path, without a task and without parsers: it is called when bytes come,
writes what follows from them at once, and holds nothing but what a later call needs. The decisions are the same calls
of the dispatcher; the head of the request was made by `gateway.plain` when such a head was first seen.

What is not plain sailing before the first byte of an answer is given back to the full path, bytes and all, if these are
still at hand and nothing forbids to send them: no connection can be made, or one broke and the request is safe to
repeat. What may not be repeated ends here, as it does there, with the same answer to the client.

Deadlines are looked at by the worker's sweep, a few times a second. Whoever lags behind stops the reading of the other:
`Connection` tells when the endpoint does, the client's connection when the client does.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from gateway.answers import TIMINGS, AnswerHead, Known, NotHTTP, server_timing
from gateway.body import REPLAY_BYTES
from gateway.chunks import LAST, BadChunks, Walk
from gateway.handover import Handover
from gateway.leases import NOTHING, Effects, Lease, Outcome
from gateway.meter import CLIENT_LEFT, Ending
from gateway.tenants import Pass
from gateway.timeouts import Pace
from gateway.upstream import Connection, Sink, Unreachable

if TYPE_CHECKING:
    from gateway.lane import Lane
    from gateway.plans import Plan
    from gateway.pools import Pool

log = logging.getLogger("gateway.passage")

#: A body is not copied to be written with its head where it is larger.
_LARGE: Final = 16 * 1024
_ANSWERED: Final = Outcome.ANSWERED
_ERROR: Final = Outcome.ERROR
_EARLY: Final = 64 * 1024
"""So much of a body is taken in before there is a connection for it."""

# How the end of an answer is known.
_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKS: Final = 2
_CLOSE: Final = 3
_OVER: Final = 4


class Relay(Sink):
    """One request of a client."""

    # What most requests never set.
    connection: Connection | None = None
    begun = 0
    """Status of the answer; 0 before it has begun."""
    sent_at = 0.0
    kept: list[bytes] | None = None
    """The request as it came, while it can be sent again."""
    kept_size = 0
    upstream_s: float | None = None
    _left = 0
    """Bytes of the answer's body to come."""
    _reusable = False
    _keepalive_s: float | None = None
    _walk: Walk | None = None
    _stale = False
    _unsent: list[bytes] | None = None
    """Parts of the request that wait for a connection."""
    _pace: Pace | None = None
    _waiting_since = 0.0
    """For the client's body."""
    _blocked_since: float | None = None
    """Since when the client has read nothing."""
    _moved = False
    """Part of the answer has come since the last look."""
    _ending: Ending | None = None
    """How it ended, while the client has yet to read the answer."""

    def __init__(self, client: Lane, plan: Plan, lease: Lease, permit: Pass | None, id: bytes, now: float) -> None:
        self.client = client
        self.fast = client.fast
        self.plan = plan
        self.lease = lease
        self.permit = permit
        self.id = id
        self.arrival = now
        self.deadline = now + plan.timeout_s
        self._stage = _HEAD
        self._held = b""
        """Of a head of an answer that is not whole."""

    # --- the request ---

    def start(self, lead: bytes, length: bytes, data: bytes, end: int, left: int) -> None:
        """Send the request that begins `data`: its body begins at `end`, and `left` bytes of it are still to come.

        `lead` is its head as it goes to an endpoint, up to the number of its `length`.
        """
        plan, endpoint, now = self.plan, self.lease.endpoint, self.arrival
        self.left = left
        """Bytes of the request's body to come."""
        pool: Pool | None = endpoint.pool  # type: ignore[assignment]
        if pool is None:
            pool = endpoint.pool = self.fast.engine.pools.get(endpoint.id, endpoint.host, endpoint.port)
        client = self.client
        large = len(data) - end > _LARGE
        body = b"" if large else data[end:]
        request = b"".join((lead, length, client.about, self.id, b"\r\n\r\n", body))
        if left:
            self._pace = Pace(self.fast.timeouts)
            self._waiting_since = now
        repeatable = plan.repeatable
        connection = self.connection = pool.reuse(now, repeatable)
        if connection is None:
            self.kept, self.kept_size = [data], len(data)
            self._unsent = [request, data[end:] if large else b""]
            self.fast.spawn(self._connect(pool))
            return
        if repeatable:
            self.kept, self.kept_size = [data], len(data)
        self._stale = connection.used > 0
        self.sent_at = now
        connection.ask(self, request, self.fast.outbox)
        if large:
            connection.put(memoryview(data)[end:], self.fast.outbox)
        if not left:
            self.fast.dispatcher.sent(self.lease, now)

    async def _connect(self, pool: Pool) -> None:
        try:
            made = await pool.connect()
        except Unreachable as error:
            if self._stage != _OVER:
                self._give_up(Outcome.UNREACHABLE, str(error))
            return
        now = monotonic()
        if self._stage == _OVER:
            made.give_back(None, now)
            return
        unsent, self._unsent = self._unsent or [], None
        if not self.plan.repeatable:
            self.kept = None
        self.client.unhold()
        self.connection, self.sent_at = made, now
        if self._blocked_since is not None:
            made.pause_reading()
        if not self.left:
            self.fast.dispatcher.sent(self.lease, now)
        made.ask(self, b"".join(unsent), self.fast.outbox)

    def more(self, data: bytes) -> bytes:
        """More of the body came; returns what is of the next request."""
        rest = b""
        if len(data) > self.left:
            data, rest = data[: self.left], data[self.left :]
        now = monotonic()
        self.left -= len(data)
        if self._pace is not None:
            self._pace.came(len(data), now - self._waiting_since)
            self._waiting_since = now
        if self.kept is not None:
            self.kept_size += len(data)
            if self.kept_size <= REPLAY_BYTES or self.connection is None:
                self.kept.append(data)
            else:
                self.kept = None
        if self.connection is None:
            if self._unsent is not None:
                self._unsent.append(data)
                if self.kept_size > _EARLY and self.left:
                    self.client.hold()
            return rest
        self.deadline = max(self.deadline, now + self.plan.timeout_s)
        self.connection.put(data, self.fast.outbox)
        if not self.left:
            self.fast.dispatcher.sent(self.lease, now)
        return rest

    # --- the endpoint (upstream.Sink) ---

    def stalled(self) -> None:
        """The endpoint lags behind."""
        if self.left:
            self.client.hold()

    def writable(self) -> None:
        """The endpoint has caught up."""
        self._waiting_since = monotonic()
        self.client.unhold()

    def received(self, data: bytes) -> None:
        """Bytes of the answer."""
        stage = self._stage
        if stage == _LENGTH:
            left = self._left = self._left - len(data)
            if left > 0:
                self._moved = True
                self.client.put(data)
            else:
                self._finish(data[:left] if left else data, monotonic(), clean=not left)
        elif stage == _CHUNKS:
            walk = self._walk
            if walk is not None and walk.is_chunk(data):
                self._moved = True
                self.client.put(data)
            else:
                self._read_chunks(data)
        elif stage == _HEAD:
            end = data.find(b"\r\n\r\n")
            known = self.fast.known.get(data[:end])
            if known is None or known.size != len(data) or self._held or self.left or self.plan.bodiless:
                self._read_head(data)
            else:
                self._answer_at_once(known, data[end + 4 :])
        elif stage == _CLOSE:
            self._moved = True
            self.client.put(b"%x\r\n%b\r\n" % (len(data), data))

    def ended(self, *, orderly: bool) -> None:
        """No more will come."""
        if self._stage == _OVER:
            return
        if self._stage == _CLOSE and orderly:
            self._finish(LAST, monotonic(), clean=False)
        elif orderly:
            self._give_up(Outcome.BROKEN, "the connection ended before a whole answer")
        else:
            self._give_up(Outcome.BROKEN, "the connection was closed")

    # --- the answer ---

    def _answer_at_once(self, known: Known, body: bytes) -> None:
        """Pass on an answer that has come in one piece: what `_begin` and `_finish` do, in one go."""
        now = monotonic()
        client, fast, connection, head = self.client, self.fast, self.connection, known.head
        assert connection is not None
        self._stage = _OVER
        tenths = int((now - self.sent_at) * 1e4 + 0.5)
        times = TIMINGS[tenths] if tenths < 1000 else server_timing(now - self.sent_at)
        transport = client.transport
        if transport is not None:
            fast.outbox.put(transport, b"".join((head.lead, self.id, times, known.framing, body)))
        if head.reusable:
            connection.give_back(head.keepalive_s, now)
        else:
            connection.close()
        effects = fast.dispatcher.answered(self.lease, now)
        self.begun = head.status
        self._complete(effects, now)

    def _read_head(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
            self._held = b""
        while True:
            try:
                found = self.fast.answers.look_up(data, self.plan.head.method)
            except NotHTTP as error:
                self._give_up(Outcome.BROKEN, str(error))
                return
            if found is None:
                self._held = data
                return
            known, size = found
            head = known.head
            if head.status >= 200:
                break
            if head.status == 101:
                self._give_up(Outcome.BROKEN, "the endpoint switched protocols unasked")
                return
            if head.status != 100:
                self.client.put(head.lead)
            data = data[size:]
            if not data:
                return
        self._begin(head, known.length, data, size)

    def _begin(self, answer: AnswerHead, number: bytes, data: bytes, size: int) -> None:
        """The head of the answer has come, and with it what follows in `data` after `size` bytes."""
        now = monotonic()
        status = self.begun = answer.status
        elapsed = self.upstream_s = now - self.sent_at
        self.fast.dispatcher.answering(self.lease, now)
        self._reusable, self._keepalive_s = answer.reusable, answer.keepalive_s
        timing = server_timing(elapsed)
        came = len(data) - size
        if self.plan.bodiless or status == 204 or status == 304:
            framing = b"Content-Length: %b\r\n\r\n" % number if number and status != 204 else b"\r\n"
            self._finish(b"".join((answer.lead, self.id, timing, framing)), now, clean=not came)
            return
        if number:
            self.client.put(b"".join((answer.lead, self.id, timing, b"Content-Length: ", number, b"\r\n\r\n")))
            left = self._left = int(number) - came
            body = memoryview(data)[size : len(data) + min(left, 0)]
            if left <= 0:
                self._finish(body, now, clean=not left)
                return
            self._stage = _LENGTH
            self.client.put(body)
        else:
            whole = b"".join((answer.lead, self.id, timing, b"Transfer-Encoding: chunked\r\n\r\n"))
            if answer.chunked:
                self._stage, self._walk = _CHUNKS, Walk()
                if came:
                    self._read_chunks(data[size:], whole)
                    return
            else:
                self._stage = _CLOSE
                if came:
                    whole += b"%x\r\n%b\r\n" % (came, data[size:])
            self.client.put(whole)
        self.deadline = now + self.plan.timeout_s

    def _read_chunks(self, data: bytes, before: bytes = b"") -> None:
        walk = self._walk
        assert walk is not None
        try:
            out = walk.feed(data)
        except BadChunks:
            if before:
                self.client.put(before)
            self._give_up(Outcome.BROKEN, "what came is not a valid answer")
            return
        if before:
            out = before + out
        if walk.done:
            self._finish(out, monotonic(), clean=not walk.rest)
        elif out:
            self._moved = True
            self.client.put(out)

    def _finish(self, data: bytes | memoryview, now: float, *, clean: bool) -> None:
        """The answer is whole with these bytes; `clean` says whether nothing came after it."""
        client, fast, connection = self.client, self.fast, self.connection
        assert connection is not None
        client.put(data)
        self._stage = _OVER
        if clean and self._reusable and not self.left:
            connection.give_back(self._keepalive_s, now)
        else:
            connection.close()
        effects = fast.dispatcher.release(self.lease, _ERROR if self.begun >= 500 else _ANSWERED, now)
        self._complete(effects, now)

    def _complete(self, effects: Effects, now: float) -> None:
        """The lease is given back; what is left is to be counted, once the client has taken the answer."""
        client, fast = self.client, self.fast
        if effects is not NOTHING:
            fast.engine.follow(effects)
        if client.clogged:
            self._ending = Ending.COMPLETED
            return
        self.plan.served.meter.complete(self.begun, now - self.arrival)
        if self.permit is not None:
            fast.tenants.release(self.permit, self.begun, now)
        client.done(self, now)

    def _settle(self, ending: Ending, code: int, now: float) -> None:
        self.plan.served.meter.finish(ending, code, now - self.arrival)
        if self.permit is not None:
            self.fast.dispatcher.tenants.release(self.permit, code, now)

    def _give_up(self, outcome: Outcome, why: str, fault: int = 0) -> None:
        """There is no answer, or no whole one; `fault` is the status where the request is to blame."""
        now = monotonic()
        if outcome is Outcome.BROKEN and self._stale and not self.begun:
            outcome = Outcome.STALE
        self._stage = _OVER
        if self.connection is not None:
            self.connection.close()
        client, plan = self.client, self.plan
        self.fast.engine.release(self.lease, outcome, now)
        about = {"request_id": self.id.decode("ascii"), "model": plan.name, "replica": self.lease.endpoint.id}
        late = outcome is Outcome.TIMED_OUT
        if self.begun:
            log.warning("an answer was cut short: %s", why, extra=about)
            self._settle(Ending.FAILED, 504 if late else 502, now)
            client.cut(self)
            return
        if self.kept is not None and (outcome is Outcome.UNREACHABLE or (not fault and not late and plan.repeatable)):
            handover = Handover(about["request_id"], self.arrival, self.permit, plan.served)
            if outcome is Outcome.UNREACHABLE:
                log.info("an endpoint cannot be reached, asking again: %s", why, extra=about)
                handover.entered = self.lease.since
            else:
                plan.served.meter.retries += 1
                handover.repeats, handover.broke = 1, self.lease.endpoint.id
                log.info("a request is repeated: %s", why, extra=about)
            client.hand_over(self, handover, self.kept)
            return
        if fault:
            self._settle(Ending.REJECTED, fault, now)
            client.refuse(self, fault, why, "bad_request", close=True)
        elif late:
            log.warning("no answer in time", extra=about)
            self._settle(Ending.FAILED, 504, now)
            client.refuse(self, 504, f"model {plan.name!r} gave no answer in time", "timeout")
        else:
            log.warning("no answer: %s", why, extra=about)
            self._settle(Ending.FAILED, 502, now)
            client.refuse(self, 502, f"a replica of model {plan.name!r} gave no answer: {why}", "bad_gateway")

    def client_stalled(self) -> None:
        """The client lags behind."""
        self._blocked_since = monotonic()
        if self._stage != _OVER and self.connection is not None:
            self.connection.pause_reading()

    def client_writable(self) -> None:
        """The client has caught up."""
        self._blocked_since = None
        now = monotonic()
        if self._ending is not None:
            ending, self._ending = self._ending, None
            self._settle(ending, self.begun, now)
            self.client.done(self, now)
        elif self._stage != _OVER and self.connection is not None:
            self.deadline = now + self.plan.timeout_s
            self.connection.resume_reading()

    def client_left(self) -> None:
        """The client is gone."""
        now = monotonic()
        if self._stage != _OVER:
            self._stage = _OVER
            if self.connection is not None:
                self.connection.close()
            self.fast.engine.release(self.lease, Outcome.ABANDONED, now)
        self._ending = None
        self._settle(Ending.CANCELLED, CLIENT_LEFT, now)

    def check(self, now: float) -> None:
        """Look whether somebody has been waited for too long."""
        client = self.client
        if self._blocked_since is not None:
            if now - self._blocked_since >= self.fast.timeouts.stall_s:
                client.abort()
            return
        if self._stage == _OVER or self.connection is None:
            return
        if self._moved:
            self._moved = False
            self.deadline = now + self.plan.timeout_s
        slow = "the body of the request did not come in time"
        pace = self._pace
        if self.left and pace is not None and not client.held and now - self._waiting_since > pace.left():
            self._give_up(Outcome.ABANDONED, f"the request cannot be forwarded: {slow}", 408)
        elif now >= self.deadline:
            if self.left and not self.connection.lagging:
                self._give_up(Outcome.ABANDONED, slow, 408)
            else:
                self._give_up(Outcome.TIMED_OUT, "no answer in time")
