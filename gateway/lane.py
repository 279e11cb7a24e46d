"""The fast lane of a client's connection: plain requests are passed on as bytes, from one callback to the next.

It lies in front of the full path, in the same connection, and is what the event loop gives all bytes to. Between two
requests it looks at those that come. A request whose head is plain (`gateway.plain`), for which nothing special is
declared, and for which an endpoint has a place at this moment, becomes a `Relay`. Whatever else comes is given to
aiohttp's parser as it came, and the full path does with it what it always does. The fast path never refuses what the
full path takes, nor takes what that refuses: where it is not sure, it steps aside.

To step aside is possible only while the parser of the full path has read no less and no more than whole requests. So
the bytes that it gets are counted: `_due` is what is still to come of the request that it reads. Where that cannot be
told, the connection stays on the full path, until a body in chunks ends plainly.

Nothing is decided twice. What a head means is worked out once for all requests that have it (`gateway.plans`); limits,
places and figures are those of the dispatcher, call by call.

A body that names its model is gathered first, for a moment and up to a bound; after that the full path reads it.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final

from gateway.answers import own_answer
from gateway.exchange import timing
from gateway.handover import FullPath, Handover
from gateway.meter import CLIENT_LEFT, Ending
from gateway.plans import Plan
from gateway.refusal import Refusal
from gateway.relay import Relay
from gateway.relays import FastPath
from gateway.tenants import Pass

#: A body that names its model is gathered up to this size, and for so long.
_MAX_GATHERED: Final = 256 * 1024
_GATHER_S: Final = 0.5
#: Requests that came before their turn are read up to this size.
_MAX_AHEAD: Final = 64 * 1024
#: What is still sent of a request that was answered is dropped for so long, as aiohttp does it.
_DISCARD_S: Final = 10.0
#: A head that comes in parts is followed up to this size.
_MAX_PARTIAL: Final = 64 * 1024
_UNKNOWN: Final = -1
_PARTIAL: Final = -2


class Lane:
    """What comes from one client."""

    __slots__ = (
        "_advancing",
        "_ahead",
        "_ahead_size",
        "_discard",
        "_due",
        "_full",
        "_gathered",
        "_handover",
        "_partial",
        "_relay",
        "_want",
        "about",
        "answered_at",
        "clogged",
        "closing",
        "fast",
        "held",
        "started",
        "transport",
    )

    def __init__(self, full: FullPath, fast: FastPath) -> None:
        self.fast = fast
        self.transport: asyncio.Transport | None = None
        """None once nothing is to be written any more."""
        self.about = b""
        """What is said of the client to endpoints, up to the name of the field for a request's id."""
        self.answered_at = 0.0
        """When a request was last answered here, by the monotonic clock."""
        self.clogged = False
        """The client has yet to read what was written."""
        self.held = False
        """Nothing is read from the client at present."""
        self.closing = False
        """The connection ends after the request in progress."""
        self.started = False
        """Whether the full path has had anything from this client."""
        self._full: FullPath | None = full
        self._relay: Relay | None = None
        """The request in progress."""
        self._ahead: list[bytes] = []
        """Bytes of requests after the one in progress."""
        self._ahead_size = 0
        self._advancing = False
        self._discard = 0
        """Bytes to come of a request that was answered before its end."""
        self._due = 0
        """Bytes to come of the last request that the full path got; or it is not known."""
        self._partial = b""
        self._gathered: list[bytes] | None = None
        self._want = 0
        self._handover: Handover | None = None

    @property
    def answering(self) -> bool:
        """Whether a request is in progress here."""
        return self._relay is not None or self._gathered is not None

    @property
    def busy(self) -> bool:
        """Whether one is, or what is left of one still comes."""
        return self._relay is not None or self._gathered is not None or self._discard > 0

    # --- asyncio.Protocol ---

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        relay = self._relay
        if relay is not None:
            if relay.left:
                data = relay.more(data)
            if data:
                self._keep_ahead(data)
        elif self._gathered is not None:
            self._gathered.append(data)
            self._want -= len(data)
            if self._want <= 0:
                self._gathered_all()
        elif self._discard:
            dropped, self._discard = self._discard, max(0, self._discard - len(data))
            if not self._discard:
                self.fast.timed.pop(self, None)
                if len(data) > dropped:
                    self.data_received(data[dropped:])
        elif self.clogged and not self._due and not (self.started and self._full is not None and self._full.at_work):
            # Answers to who reads none would heap up.
            self._keep_ahead(data)
        elif not self._begin(data):
            self._to_full_path(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client is gone."""
        relay, self._relay = self._relay, None
        fast = self.fast
        if relay is not None:
            fast.active.discard(relay)
            relay.client_left()
        if self._gathered is not None:
            self._gathered = None
            fast.dispatcher.meter.unroute(CLIENT_LEFT)
        fast.timed.pop(self, None)
        self._ahead.clear()
        if self._handover is not None:
            fast.proxy.forsake(self._handover, CLIENT_LEFT)
            self._handover = None
        self.transport = None
        # The two know each other: without this, only the garbage collector would free them.
        full, self._full = self._full, None
        if full is not None:
            full.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client lags behind."""
        self.clogged = True
        if self._full is not None:
            self._full.pause_writing()
        if self._relay is not None:
            self._relay.client_stalled()

    def resume_writing(self) -> None:
        """It has caught up."""
        self.clogged = False
        if self._full is not None:
            self._full.resume_writing()
        if self._relay is not None:
            self._relay.client_writable()
        elif self._ahead:
            self._advance()

    def eof_received(self) -> bool | None:
        """It has ended its side; True keeps ours open for the answer."""
        self.fast.outbox.flush()
        relay, full = self._relay, self._full
        if full is None:
            return None
        if relay is None and not self._ahead:
            return full.eof_received() if self.started else None
        if relay is not None and relay.left:
            return None
        full.half_close()
        return True

    # --- requests ---

    def _begin(self, data: bytes) -> bool:
        """Take what begins a request, if it is one for the fast path."""
        full = self._full
        if full is None or (self.started and full.at_work) or (self._due and not self._clean(full)):
            return False
        fast = self.fast
        end = data.find(b"\r\n\r\n")
        if end < 0 or self.transport is None or fast.proxy.closing:
            return False
        known = fast.plans.get(data[:end]) or fast.planner.look_up(data, end)
        if known is None:
            return False
        plan, length, size, values = known
        if plan.edition != fast.table.edition:
            fast.planner.resolve(plan)
        if not plan.name:
            return False
        end += 4
        left = size - len(data)
        if plan.in_body:
            if left > 0:
                return self._gather(data, left)
            named = fast.planner.named(plan, data[end:size])
            if named is None:
                return False
            plan = named
        now = monotonic()
        permit: Pass | None = None
        if plan.tenant is not None:
            answer = fast.tenants.admit(plan.tenant, plan.name, now)
            if not isinstance(answer, Pass):
                plan.served.meter.finish(Ending.REFUSED, answer.status, 0.0, answer.reason)
                self._refused(plan, plan.id_of(values) or fast.new_id(), answer, data, size)
                return True
            permit = answer
        lease = fast.dispatcher.lease_now(plan.served, now)
        id = plan.id_of(values) or fast.new_id()
        if lease is None:
            if permit is not None:
                self._handover = Handover(id.decode("ascii"), now, permit)
            return False
        plan.served.meter.arrivals += 1
        if left < 0:
            self._keep_ahead(data[size:])
            data, left = data[:size], 0
        if not self.about:
            self.about = full.introduced()
        relay = self._relay = Relay(self, plan, lease, permit, id, now)
        fast.active.add(relay)
        if not fast.looking:
            fast.expect()
        relay.start(plan.lead(values), length, data, end, left)
        return True

    def _clean(self, full: FullPath) -> bool:
        if self._due != _UNKNOWN or not full.clean():
            return False
        self._due = 0
        return True

    def _gather(self, data: bytes, left: int) -> bool:
        if len(data) + left > _MAX_GATHERED:
            return False
        self._gathered = [data]
        self._want = left
        self.fast.timed[self] = monotonic() + _GATHER_S
        self.fast.expect()
        return True

    def _gathered_all(self) -> None:
        data, self._gathered = b"".join(self._gathered or []), None
        self.fast.timed.pop(self, None)
        self.data_received(data)

    def expire(self) -> None:
        """What was waited for did not come."""
        if self._gathered is not None:
            data, self._gathered = b"".join(self._gathered), None
            self._to_full_path(data)
        elif self._discard and self.transport is not None:
            self.transport.close()

    def _keep_ahead(self, data: bytes) -> None:
        self._ahead.append(data)
        self._ahead_size += len(data)
        if self._ahead_size > _MAX_AHEAD:
            self.hold()

    def _advance(self) -> None:
        """Go on to what has come ahead of its turn."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._ahead and self._relay is None and not self.clogged:
                data = b"".join(self._ahead)
                self._ahead.clear()
                self._ahead_size = 0
                self.unhold()
                self.data_received(data)
        finally:
            self._advancing = False

    # --- the full path ---

    def _to_full_path(self, data: bytes) -> None:
        self.fast.outbox.flush()
        if self._full is not None:
            self._count_in(data)
            if not self.started:
                self.started = True
                self._full.begin()
            self._full.data_received(data)

    def _count_in(self, data: bytes) -> None:
        """Follow where the requests end that the full path gets."""
        if self._due == _UNKNOWN:
            return
        if self._due == _PARTIAL:
            data, self._partial, self._due = self._partial + data, b"", 0
        while data:
            if not self._due:
                self._due = self._size_of(data)
                if self._due == _PARTIAL:
                    self._partial = data
                if self._due < 0:
                    return
            taken = min(self._due, len(data))
            self._due -= taken
            data = data[taken:]

    def _size_of(self, data: bytes) -> int:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return _PARTIAL if len(data) <= _MAX_PARTIAL else _UNKNOWN
        known = self.fast.planner.look_up(data, end)
        return _UNKNOWN if known is None else known[2]

    def hand_over(self, relay: Relay, handover: Handover, kept: list[bytes]) -> None:
        """Let the full path go on with a request that the fast path began."""
        self._relay = None
        self.fast.active.discard(relay)
        ahead, self._ahead, self._ahead_size = self._ahead, [], 0
        self.unhold()
        if self.transport is None:
            self.fast.proxy.forsake(handover, CLIENT_LEFT)
            return
        self._handover = handover
        self._to_full_path(b"".join([*kept, *ahead]))

    def take_over(self) -> Handover | None:
        """What the fast path did with the request that the full path now handles, if it began it."""
        handover, self._handover = self._handover, None
        return handover

    # --- answers ---

    def put(self, data: bytes | memoryview) -> None:
        """Bytes to the client, if it is still there."""
        if self.transport is not None:
            self.fast.outbox.put(self.transport, data)

    def done(self, relay: Relay, now: float) -> None:
        """A request is answered, and all of it has been written."""
        self._relay = None
        self.fast.active.discard(relay)
        self.answered_at = now
        if self.closing or relay.left or self.held or self._ahead:
            self._after(relay)

    def _after(self, relay: Relay) -> None:
        if self.closing:
            if self._full is not None:
                self._full.force_close()
            return
        if relay.left:
            self._drop(relay.left)
        self.unhold()
        self._advance()

    def cut(self, relay: Relay) -> None:
        """End the connection within an answer, such that the client sees that it is not whole."""
        self._relay = None
        self.fast.active.discard(relay)
        self._ahead.clear()
        self.unhold()
        if self._full is not None:
            self._full.linger()

    def refuse(self, relay: Relay, status: int, message: str, reason: str, *, close: bool = False) -> None:
        """Answer a request with an error of the gateway's own."""
        lease = relay.lease
        times = timing(lease.queue_s, lease.start_s, relay.upstream_s)
        answer = own_answer(relay.plan.head, relay.id, status, message, reason, times, close=close)
        self.put(answer)
        if close:
            self.cut(relay)
        else:
            self.done(relay, monotonic())

    def _refused(self, plan: Plan, id: bytes, refusal: Refusal, data: bytes, size: int) -> None:
        """Answer a request that is over a limit of its tenant."""
        times = timing(0.0, 0.0, None)
        status, message, reason = refusal.status, refusal.message, refusal.reason
        self.put(own_answer(plan.head, id, status, message, reason, times, retry_after_s=refusal.retry_after_s))
        self.answered_at = monotonic()
        if len(data) < size:
            self._drop(size - len(data))
        elif len(data) > size:
            self._ahead.insert(0, data[size:])
            self._ahead_size += len(data) - size
            self._advance()

    def _drop(self, nbytes: int) -> None:
        self._discard = nbytes
        self.fast.timed[self] = monotonic() + _DISCARD_S
        self.fast.expect()

    # --- back-pressure ---

    def hold(self) -> None:
        """Read nothing from the client for now."""
        if not self.held and self.transport is not None:
            self.held = True
            self.transport.pause_reading()

    def unhold(self) -> None:
        """Go on after `hold`."""
        if self.held:
            self.held = False
            if self.transport is not None and self._full is not None and not self._full.holds:
                self.transport.resume_reading()

    def abort(self) -> None:
        """The client reads nothing."""
        if self.transport is not None:
            self.transport.abort()
