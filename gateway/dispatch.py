"""Every decision about a request to a model: admit, pick, wait, release, record. Synchronous and pure.

A request is `admit`ted: it gets a `Lease` of an endpoint, a `Ticket` of the waiting room, or a `Refusal`. A lease is
given back with `release`, which says how the endpoint did; that, a change of the table (`apply`) and the passing of
time (`tick`) may give leases to tickets that wait. Those calls return `Effects`: what a shell must now do. No path
through the gateway changes a count of requests in flight or queued but through these.

Who waits, and for how long:
- while a model has no usable endpoint, requests wait for one to start, and the controller is woken once;
- while all endpoints are at their limit, or refuse connections, requests wait for one of them;
- nobody overtakes: a request that finds others waiting queues with them, and the room says who is next;
- a full room, the model's or all together, refuses, unless somebody waits in it who ranks below the one that comes;
- a model that is set to no replicas, or for which no replica can come at present, refuses at once;
- the wait ends at the model's `queue_max_s` (503), or at the request's own timeout if that comes first (504).
"""

from __future__ import annotations

from typing import Final

from gateway import routing, shedding, splitting
from gateway.leases import BLAMELESS, NOTHING, Effects, Lease, Outcome, Served
from gateway.limits import Limits
from gateway.meter import Meter
from gateway.refusal import Refusal
from gateway.tenants import Tenants
from gateway.waiting import ANYONE, Claim, Ticket
from gateway.wire import Removal, Report, SettingsUpdate, Snapshot, Update, Version

#: How often a worker looks whether another has released a place, while one of its own requests waits for it.
FOREIGN_POLL_S: Final = 0.005


_ANSWERED: Final = Outcome.ANSWERED


class Dispatcher:
    """The state of one worker: its table, waiting rooms, limits and figures."""

    def __init__(self, limits: Limits, meter: Meter, rng: routing.Random) -> None:
        self.limits = limits
        self.meter = meter
        self.table = routing.Table()
        self.tenants = Tenants(limits)
        self.evicted: list[tuple[Ticket, Refusal]] = []
        """Tickets that `admit` took out of a full room; whoever called it carries out `shed`."""
        self._rng = rng
        self._served: dict[str, Served] = {}
        self._waiting: set[Served] = set()
        self._ailing: set[Served] = set()

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
        """A model of the table, by its name or an alias."""
        served = self._served.get(name) or self._served.get(self.table.aliases.get(name, ""))
        return served if served is not None and not served.removed else None

    def ready(self, name: str) -> bool:
        """Whether a model has a usable endpoint."""
        served = self.find(name)
        return served is not None and bool(served.route.usable)

    def states(self) -> list[tuple[str, bool, str]]:
        """(name, whether it has a usable endpoint, why not) of all models, sorted."""
        found = []
        for name in self.names:
            route = self.table.models[name]
            ready = bool(route.usable)
            found.append((name, ready, "" if ready else route.entry.unavailable or "no replica is ready"))
        return found

    def endpoints(self) -> dict[str, routing.Endpoint]:
        """All endpoints by id, lingering ones included."""
        return {e.id: e for s in self._served.values() for e in s.route.endpoints.values()}

    def leaving(self) -> dict[str, bool]:
        """Of each endpoint by id, whether it gets nothing new."""
        return {id: endpoint.leaving for id, endpoint in self.endpoints().items()}

    def apply(self, message: Snapshot | Update | Removal | SettingsUpdate, now: float) -> Effects | None:
        """Take a message of the controller; None where it is not newer than what is there."""
        if not self.table.newer(message):
            return None
        self.table.version = (message.term, message.number)
        self.table.edition += 1
        effects = Effects()
        if isinstance(message, Snapshot | SettingsUpdate):
            self.table.settings = message.settings
            self.tenants.apply(message.settings)
        if isinstance(message, SettingsUpdate):
            return effects
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
            self._tell(served)
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
        claim: Claim = ANYONE,
    ) -> Lease | Ticket | Refusal:
        """A place at an endpoint, or in the waiting room, or no place.

        `nbytes` is what the request holds in memory while it waits, `gives_up` when its own timeout comes. A request
        that had its turn and could not be sent gives the time `entered` at which it first asked; it goes to the front.
        A request that does not wake is refused where its model has no usable endpoint.
        """
        if not served.room.count or entered is not None:
            lease = self._lease(served, now, entered, claim.key)
            if lease is not None:
                return lease
        refusal = shedding.hopeless(served, now, wakes=wakes)
        if refusal is not None:
            return refusal
        entry = served.route.entry
        if entered is None and not self._make_room(served, nbytes, claim, now):
            return shedding.overflow(served, now)
        first = now if entered is None else entered
        ticket = Ticket(nbytes, first, min(first + entry.queue_max_s, gives_up), claim=claim)
        if ticket.deadline <= now:
            return shedding.expired(served, ticket, now)
        served.room.enter(ticket, front=entered is not None)
        served.meter.queue.add(1, now)
        self._waiting.add(served)
        self._tell(served)
        return ticket

    def lease_now(self, served: Served, now: float, besides: routing.Endpoint | None = None) -> Lease | None:
        """A place free at this moment, for what does not wait; or one at another endpoint, for what is at `besides`."""
        if served.room.count:
            return None
        if besides is None:
            endpoint = served.route.acquire(self.limits, now, self._rng)
        else:
            endpoint = served.route.acquire_other(besides, self.limits, now, self._rng)
        return None if endpoint is None else self._let(served, endpoint, now)

    def choose_version(self, served: Served, key: str) -> Served:
        """The model that a request for `served` goes to: itself, or one of its weighted versions."""
        entry = served.route.entry
        if not entry.split:
            return served
        chosen = splitting.version(entry, splitting.point(key, entry.name) if key else self._rng.random())
        return self.find(chosen) or served

    def shed(self) -> Effects:
        """What `admit` did to others than the request it was asked for."""
        effects = Effects(refused=self.evicted)
        self.evicted = []
        return effects

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

    def sent(self, lease: Lease, now: float) -> None:
        """The request of a lease was sent whole: from now on the endpoint is what is waited for."""
        if lease.sent_at is None and not lease.begun and lease.open:
            lease.sent_at = now
            lease.endpoint.vitals.sent(now)

    def answering(self, lease: Lease, now: float) -> None:
        """The first byte of an answer came."""
        if lease.sent_at is not None:
            lease.endpoint.vitals.answering(now - lease.sent_at, now)
            lease.sent_at = None
        if lease.open and not lease.begun:
            lease.begun = True
            lease.endpoint.vitals.begun += 1

    def answered(self, lease: Lease, now: float) -> Effects:
        """`answering`, then `release` with ANSWERED: for an answer that came in one piece."""
        endpoint, sent_at = lease.endpoint, lease.sent_at
        vitals = endpoint.vitals
        ill = vitals.errors or vitals.trial or vitals.ejections or endpoint.backoff_s
        if ill or sent_at is None or lease.begun or not lease.open or self._unsettled(lease.served, endpoint):
            self.answering(lease, now)
            return self.release(lease, _ANSWERED, now)
        # All is in order: what is left of the two.
        lease.open = False
        lease.sent_at = None
        vitals.answering(now - sent_at, now)
        self.limits.release(endpoint)
        meter = lease.meter
        meter.flight.add(-1, now)
        meter.completions += 1
        return NOTHING

    def _unsettled(self, served: Served, endpoint: routing.Endpoint) -> bool:
        """Whether a request less may concern anybody else."""
        if self._waiting or self._ailing or endpoint.draining or endpoint.removed or served.removed:
            return True
        return served.route.detector.out > 0

    def release(self, lease: Lease, outcome: Outcome, now: float) -> Effects:
        """Give back a lease: the one place where requests in flight become fewer."""
        if not lease.open:
            raise ValueError("this lease was given back before")
        if outcome is Outcome.OVERTAKEN:
            # One that let nobody connect was waited for all the same.
            self.sent(lease, lease.since)
        lease.open = False
        served, endpoint, meter = lease.served, lease.endpoint, lease.meter
        self.limits.release(endpoint)
        meter.flight.add(-1, now)
        if outcome is _ANSWERED or outcome is Outcome.ERROR:
            meter.completions += 1
            if outcome is Outcome.ERROR:
                meter.failures += 1
            endpoint.succeed()
        elif outcome not in BLAMELESS:
            meter.failures += 1
            if outcome is not Outcome.TIMED_OUT:
                endpoint.fail(now, unreachable=outcome is Outcome.UNREACHABLE)
        self._examine(lease, outcome, now)
        if not self._unsettled(served, endpoint):
            return NOTHING
        effects = Effects()
        if endpoint.leaving:
            served.route.forget(endpoint)
            effects.report = endpoint.in_flight == 0
        if served.room.count:
            effects.merge(self._grant(served, now))
        self._forget(served)
        return effects

    @property
    def ailing(self) -> bool:
        """Whether endpoints are ejected, so that `probes` has to be asked for."""
        return bool(self._ailing)

    def probes(self, now: float) -> list[tuple[Served, routing.Endpoint]]:
        """Ejected endpoints to probe now; each is answered with `probed`."""
        due: list[tuple[Served, routing.Endpoint]] = []
        for served in list(self._ailing):
            if served.removed or not served.route.detector.out:
                self._ailing.discard(served)
                continue
            ejected = {id(p) for p in served.route.detector.due(served.route.usable, now)}
            due += [(served, e) for e in served.route.usable if id(e) in ejected]
        return due

    def probed(self, served: Served, endpoint: routing.Endpoint, now: float, *, well: bool) -> Effects:
        """How a probe went; an endpoint that is back may take those who wait."""
        if not served.route.detector.probed(endpoint, served.route.usable, well=well, now=now):
            return Effects()
        endpoint.succeed()
        served.route.readmitted()
        return self._grant(served, now) if served.room.count else Effects()

    def _examine(self, lease: Lease, outcome: Outcome, now: float) -> None:
        route, endpoint = lease.served.route, lease.endpoint
        if lease.sent_at is not None:
            if outcome is Outcome.OVERTAKEN:
                endpoint.vitals.overtaken(now - lease.sent_at, now)
            else:
                endpoint.vitals.answering(None, now)
            lease.sent_at = None
        if lease.begun:
            endpoint.vitals.begun -= 1
        if outcome is Outcome.ANSWERED:
            route.detector.succeeded(endpoint, now)
        elif outcome not in BLAMELESS and not endpoint.leaving:
            unreachable = outcome is Outcome.UNREACHABLE
            route.detector.failed(endpoint, route.usable, now, unreachable=unreachable)
        if not lease.served.removed and route.detector.out:
            self._ailing.add(lease.served)

    # --- time ---

    def tick(self, now: float) -> Effects:
        """Expire tickets, and give out places that came free without a word."""
        effects = Effects()
        for served in list(self._waiting):
            for ticket in served.room.expire(now):
                self._left(served, 1, now)
                effects.refused.append((ticket, shedding.expired(served, ticket, now)))
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
        for served in self._served.values():
            for meter in served.meter.endpoints.values():
                endpoint = served.route.endpoints.get(meter.id)
                meter.ejected = endpoint.vitals.ejected or "" if endpoint is not None else ""
        return self.meter.report(self.version, now, full=full, tenants=self.tenants.report(full=full))

    # --- inside ---

    def _make_room(self, served: Served, nbytes: int, claim: Claim, now: float) -> bool:
        """Whether one more may wait; takes out those who rank below it, if that helps."""
        while not shedding.fits(served, self._waiting, self.table.settings, self.limits, nbytes):
            victim = served.room.outranked(claim)
            if victim is None:
                return False
            served.room.leave(victim)
            self._left(served, 1, now)
            self.evicted.append((victim, shedding.overflow(served, now)))
        return True

    def _let(self, served: Served, endpoint: routing.Endpoint, now: float) -> Lease:
        meter = served.meter.endpoints.get(endpoint.id) or served.meter.endpoint(endpoint.id, now)
        meter.requests += 1
        meter.flight.add(1, now)
        return Lease(served, endpoint, meter, now)

    def _lease(self, served: Served, now: float, entered: float | None, key: str = "") -> Lease | None:
        endpoint = served.route.acquire(self.limits, now, self._rng, key)
        if endpoint is None:
            return None
        lease = self._let(served, endpoint, now)
        if entered is not None:
            since = served.route.usable_since
            lease.start_s = max(0.0, min(now, since if since is not None else now) - entered)
            lease.queue_s = now - entered - lease.start_s
        return lease

    def _grant(self, served: Served, now: float) -> Effects:
        effects = Effects()
        while (ticket := served.room.first()) is not None:
            lease = self._lease(served, now, ticket.entered, ticket.claim.key)
            if lease is None:
                break
            served.room.take(ticket)
            self._left(served, 1, now)
            effects.granted.append((ticket, lease))
        if served.room.count:
            refusal = shedding.hopeless(served, now, wakes=True)
            if refusal is not None:
                effects.refused += [(t, refusal) for t in self._clear(served, now)]
        return effects

    def _clear(self, served: Served, now: float) -> list[Ticket]:
        tickets = served.room.clear()
        self._left(served, len(tickets), now)
        return tickets

    def _tell(self, served: Served) -> None:
        if self.limits.shared:
            self.limits.tell(served.told, served.route.entry.slot, served.room.count, served.room.nbytes)

    def _left(self, served: Served, count: int, now: float) -> None:
        served.meter.queue.add(-count, now)
        self._tell(served)
        if not served.room.count:
            self._waiting.discard(served)
            self._forget(served)
