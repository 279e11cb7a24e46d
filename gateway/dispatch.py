"""Every decision about a request to a model: admit, pick, wait, release, record. Synchronous and pure.

A request is `admit`ted: it gets a `Lease` of an endpoint, a `Ticket` of the waiting room, or a `Refusal`. A lease is
given back with `release`, which says how the endpoint did; that, a change of the table (`apply`) and the passing of
time (`tick`) may give leases to tickets that wait. Those calls return `Effects`: what a shell must now do. No path
through the gateway changes a count of requests in flight or queued but through these.

Who waits, and for how long:
- while a model has no usable endpoint, requests wait for one to start, and the controller is woken once;
- while all endpoints are at their limit, or refuse connections, requests wait for one of them;
- nobody overtakes: a request that finds others waiting queues behind them;
- a model that is set to no replicas, or for which no replica can come at present, refuses at once;
- the wait ends at the model's `queue_max_s` (503), or at the request's own timeout if that comes first (504).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway import routing
from gateway.limits import Limits
from gateway.meter import EndpointMeter, Meter, ModelMeter
from gateway.waiting import Room, Ticket
from gateway.wire import Removal, Report, Snapshot, Update, Version

#: How often a worker looks whether another has released a place, while one of its own requests waits for it.
FOREIGN_POLL_S: Final = 0.005
#: Retry-After where nothing is known of when it would pay, and its upper bound.
_RETRY_UNKNOWN_S: Final = 5
_RETRY_MAX_S: Final = 300


class Outcome(StrEnum):
    """How an endpoint did with a request that was leased to it."""

    ANSWERED = "answered"
    ERROR = "error"
    """Answered in full, with 5xx."""
    UNREACHABLE = "unreachable"
    """It refused the connection; nothing was sent."""
    STALE = "stale"
    """A connection kept from an earlier request turned out to be closed; the endpoint is not to blame."""
    BROKEN = "broken"
    """The connection broke, or what came was not HTTP, before a whole answer was there."""
    TIMED_OUT = "timed_out"
    ABANDONED = "abandoned"
    """Given up for reasons that are not the endpoint's: the client left or sent nonsense."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is answered by the gateway itself."""

    status: int
    reason: str
    """A word of a fixed set: queue_full, queue_timeout, no_replicas, unavailable, asleep, timeout, unknown."""
    message: str
    retry_after_s: int | None = None


@dataclass(slots=True, eq=False)
class Served:
    """A model with all that this worker keeps of it."""

    route: routing.Model
    meter: ModelMeter
    room: Room = field(default_factory=Room)
    woken: bool = False
    """Whether the controller has been told since the table of this model last changed."""
    removed: bool = False


@dataclass(slots=True, eq=False)
class Lease:
    """One place in flight at an endpoint; given back exactly once."""

    served: Served
    endpoint: routing.Endpoint
    meter: EndpointMeter
    since: float
    queue_s: float = 0.0
    """Waited while there was a usable endpoint."""
    start_s: float = 0.0
    """Waited while there was none."""
    open: bool = True


@dataclass(slots=True)
class Effects:
    """What a shell must do after a change."""

    granted: list[tuple[Ticket, Lease]] = field(default_factory=list)
    refused: list[tuple[Ticket, Refusal]] = field(default_factory=list)
    wakes: list[str] = field(default_factory=list)
    """Models for which the controller is to be woken."""
    report: bool = False
    """Somebody waits for a drain: report at once."""

    def merge(self, other: Effects) -> None:
        """Both."""
        self.granted += other.granted
        self.refused += other.refused
        self.wakes += other.wakes
        self.report |= other.report


class Dispatcher:
    """The state of one worker: its table, waiting rooms, limits and figures."""

    def __init__(self, limits: Limits, meter: Meter, rng: routing.Random) -> None:
        self.limits = limits
        self.meter = meter
        self.table = routing.Table()
        self._rng = rng
        self._served: dict[str, Served] = {}
        self._waiting: set[Served] = set()

    def __repr__(self) -> str:
        return f"<Dispatcher at {self.table.version}: {len(self._served)} models, {len(self._waiting)} waited for>"

    # --- the table ---

    @property
    def version(self) -> Version:
        """Of the table in use; (0, 0) before any."""
        return self.table.version

    @property
    def names(self) -> list[str]:
        """Models of the table, sorted."""
        return sorted(self.table.models)

    def find(self, name: str) -> Served | None:
        """A model of the table."""
        served = self._served.get(name)
        return served if served is not None and not served.removed else None

    def ready(self, name: str) -> bool:
        """Whether a model has a usable endpoint."""
        served = self.find(name)
        return served is not None and bool(served.route.usable)

    def endpoints(self) -> dict[str, routing.Endpoint]:
        """All endpoints by id, lingering ones included."""
        return {e.id: e for s in self._served.values() for e in s.route.endpoints.values()}

    def apply(self, message: Snapshot | Update | Removal, now: float) -> Effects | None:
        """Take a message of the controller; None where it is not newer than what is there."""
        if not self.table.newer(message):
            return None
        self.table.version = (message.term, message.number)
        effects = Effects()
        if isinstance(message, Removal):
            self._remove(message.name, now, effects)
            return effects
        entries = message.models if isinstance(message, Snapshot) else (message.model,)
        if isinstance(message, Snapshot):
            named = {entry.name for entry in entries}
            for name in [n for n in self.table.models if n not in named]:
                self._remove(name, now, effects)
        for entry in entries:
            served = self._served.get(entry.name)
            if served is None:
                served = Served(routing.Model(entry, now), self.meter.model(entry.name, now))
                self._served[entry.name] = served
                effects.report |= any(e.draining for e in entry.endpoints)
            else:
                change = served.route.take(entry, now)
                for endpoint, old_slot in change.moved:
                    self.limits.move(endpoint, old_slot)
                effects.report |= change.leaving
            served.removed = served.meter.removed = served.woken = False
            self.table.models[entry.name] = served.route
            self._follow(served, now)
            effects.merge(self._grant(served, now))
            if served.room.count and not entry.starting and (wanted := self.wake(served)):
                effects.wakes.append(wanted)
        return effects

    def _remove(self, name: str, now: float, effects: Effects) -> None:
        route = self.table.models.pop(name, None)
        if route is None:
            return
        served = self._served[name]
        route.retire(now)
        served.removed = served.meter.removed = True
        self._follow(served, now)
        effects.report = True
        gone = Refusal(404, "unknown", f"model {name!r} was removed")
        effects.refused += [(t, gone) for t in self._clear(served, now)]
        self._forget(served)

    def _follow(self, served: Served, now: float) -> None:
        for id in served.route.endpoints:
            served.meter.endpoint(id, now).removed = False
        for meter in served.meter.endpoints.values():
            endpoint = served.route.endpoints.get(meter.id)
            meter.removed = endpoint is None or endpoint.removed

    def _forget(self, served: Served) -> None:
        if served.removed and served.meter.idle:
            self._served.pop(served.meter.name, None)

    # --- a request ---

    def admit(
        self,
        served: Served,
        now: float,
        *,
        nbytes: int,
        gives_up: float,
        entered: float | None = None,
        wakes: bool = True,
    ) -> Lease | Ticket | Refusal:
        """A place at an endpoint, or in the waiting room, or no place.

        `nbytes` is what the request holds in memory while it waits, `gives_up` when its own timeout comes. A request
        that had its turn and could not be sent gives the time `entered` at which it first asked; it goes to the front.
        A request that does not wake is refused where its model has no usable endpoint.
        """
        if not served.room.count or entered is not None:
            lease = self._lease(served, now, entered)
            if lease is not None:
                return lease
        refusal = self._hopeless(served, now, wakes=wakes)
        if refusal is not None:
            return refusal
        entry = served.route.entry
        if entered is None:
            full = served.room.full(nbytes, max_requests=entry.queue_max_requests, max_bytes=entry.queue_max_bytes)
            if full is not None:
                return self._overflow(served, now)
        first = now if entered is None else entered
        ticket = Ticket(nbytes, first, min(first + entry.queue_max_s, gives_up))
        if ticket.deadline <= now:
            return self._expired(served, ticket, now)
        served.room.enter(ticket, front=entered is not None)
        served.meter.queue.add(1, now)
        self._waiting.add(served)
        return ticket

    def wake(self, served: Served) -> str | None:
        """Model to wake the controller for, after a request that may wake got no lease; None where it need not know."""
        if served.woken or served.removed or served.route.usable or not served.route.entry.max_replicas:
            return None
        served.woken = True
        return served.meter.name

    def cancel(self, served: Served, ticket: Ticket, now: float) -> None:
        """The request of a ticket is gone."""
        if served.room.leave(ticket):
            self._left(served, 1, now)

    def release(self, lease: Lease, outcome: Outcome, now: float) -> Effects:
        """Give back a lease: the one place where requests in flight become fewer."""
        if not lease.open:
            raise ValueError("this lease was given back before")
        lease.open = False
        served, endpoint, meter = lease.served, lease.endpoint, lease.meter
        self.limits.release(endpoint)
        served.meter.flight.add(-1, now)
        meter.flight.add(-1, now)
        if outcome is Outcome.ANSWERED or outcome is Outcome.ERROR:
            meter.completions += 1
            if outcome is Outcome.ERROR:
                meter.failures += 1
            endpoint.succeed()
        elif outcome not in (Outcome.ABANDONED, Outcome.STALE):
            meter.failures += 1
            if outcome is not Outcome.TIMED_OUT:
                endpoint.fail(now, unreachable=outcome is Outcome.UNREACHABLE)
        effects = Effects()
        if endpoint.leaving:
            served.route.forget(endpoint)
            effects.report = endpoint.in_flight == 0
        if served.room.count:
            effects.merge(self._grant(served, now))
        self._forget(served)
        return effects

    # --- time ---

    def tick(self, now: float) -> Effects:
        """Expire tickets, and give out places that came free without a word."""
        effects = Effects()
        for served in list(self._waiting):
            for ticket in served.room.expire(now):
                self._left(served, 1, now)
                effects.refused.append((ticket, self._expired(served, ticket, now)))
            effects.merge(self._grant(served, now))
        return effects

    def next_tick(self, now: float) -> float | None:
        """When `tick` is due; None while nobody waits."""
        times: list[float] = []
        for served in self._waiting:
            deadline = served.room.next_deadline()
            if deadline is not None:
                times.append(deadline)
            resumption = served.route.next_resumption(now)
            if resumption is not None:
                times.append(resumption)
            if self.limits.shared and any(e.concurrency for e in served.route.usable):
                times.append(now + FOREIGN_POLL_S)
        return min(times, default=None)

    def wanted(self) -> list[str]:
        """Models that are waited for and have no usable endpoint, for a controller that has just connected."""
        names = [s.meter.name for s in self._waiting if not s.route.usable]
        for name in names:
            self._served[name].woken = True
        return sorted(names)

    def report(self, now: float, *, full: bool) -> Report:
        """Figures for the controller."""
        return self.meter.report(self.version, now, full=full)

    # --- inside ---

    def _lease(self, served: Served, now: float, entered: float | None) -> Lease | None:
        endpoint = served.route.acquire(self.limits, now, self._rng)
        if endpoint is None:
            return None
        meter = served.meter.endpoint(endpoint.id, now)
        meter.requests += 1
        meter.flight.add(1, now)
        served.meter.flight.add(1, now)
        lease = Lease(served, endpoint, meter, now)
        if entered is not None:
            since = served.route.usable_since
            lease.start_s = max(0.0, min(now, since if since is not None else now) - entered)
            lease.queue_s = now - entered - lease.start_s
        return lease

    def _grant(self, served: Served, now: float) -> Effects:
        effects = Effects()
        while (ticket := served.room.first()) is not None:
            lease = self._lease(served, now, ticket.entered)
            if lease is None:
                break
            served.room.leave(ticket)
            self._left(served, 1, now)
            effects.granted.append((ticket, lease))
        if served.room.count:
            refusal = self._hopeless(served, now, wakes=True)
            if refusal is not None:
                effects.refused += [(t, refusal) for t in self._clear(served, now)]
        return effects

    def _clear(self, served: Served, now: float) -> list[Ticket]:
        tickets = served.room.clear()
        self._left(served, len(tickets), now)
        return tickets

    def _left(self, served: Served, count: int, now: float) -> None:
        served.meter.queue.add(-count, now)
        if not served.room.count:
            self._waiting.discard(served)
            self._forget(served)

    def _hopeless(self, served: Served, now: float, *, wakes: bool) -> Refusal | None:
        entry = served.route.entry
        if served.removed:
            return Refusal(404, "unknown", f"model {entry.name!r} was removed")
        if served.route.usable:
            return None
        if entry.max_replicas == 0:
            return Refusal(503, "no_replicas", f"model {entry.name!r} is set to no replicas", _RETRY_UNKNOWN_S * 12)
        if entry.unavailable is not None:
            message = f"model {entry.name!r} has no replica at present: {entry.unavailable}"
            return Refusal(503, "unavailable", message, self._retry_after(served, now))
        if not wakes:
            message = f"model {entry.name!r} has no replica at present, and this request does not start one"
            return Refusal(503, "asleep", message, self._retry_after(served, now))
        return None

    def _overflow(self, served: Served, now: float) -> Refusal:
        name = served.meter.name
        if served.route.usable:
            message = f"model {name!r} is busy and its queue is full"
            return Refusal(429, "queue_full", message, self._retry_after(served, now))
        message = f"model {name!r} has no replica yet and its queue is full"
        return Refusal(503, "queue_full", message, self._retry_after(served, now))

    def _expired(self, served: Served, ticket: Ticket, now: float) -> Refusal:
        entry = served.route.entry
        waited = now - ticket.entered
        if ticket.deadline < ticket.entered + entry.queue_max_s:
            return Refusal(504, "timeout", f"model {entry.name!r} gave no answer in time; {waited:.1f} s in the queue")
        message = f"model {entry.name!r} had no place for this request within {waited:.1f} s"
        return Refusal(503, "queue_timeout", message, self._retry_after(served, now))

    def _retry_after(self, served: Served, now: float) -> int:
        """Seconds until it pays to ask again: the replica on its way, else the time the queue takes to empty."""
        seconds = served.route.ready_in(now)
        if served.route.usable:
            meter = served.meter
            if meter.completions and meter.flight.value:
                # Little's law: with n in flight that take L seconds each, n/L requests leave in a second.
                mean = meter.latency_s / meter.completions
                drained = (served.room.count + 1) * mean / meter.flight.value
                seconds = drained if seconds is None else min(seconds, drained)
            elif seconds is None:
                seconds = 1.0
        if seconds is None:
            seconds = _RETRY_UNKNOWN_S
        return min(_RETRY_MAX_S, max(1, math.ceil(seconds)))
