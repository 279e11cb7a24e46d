"""The waiting room of a model: requests that no endpoint can take yet.

Who is next: the highest priority that waits; within a priority tenants take turns in proportion to their weights
(start-time fair queueing), and each tenant's own requests come first in, first out. A request that had its turn and
could not be sent is the first of its priority. Without tenants all this is one queue.

Start-time fair queueing (Goyal, Vin and Cheng 1996): each tenant's first request carries a tag; the least tag is next,
and it becomes the virtual time. Being served moves a tenant's tag on by 1/weight; a tenant that comes back from idling
begins at the virtual time, so that it neither saved up turns nor lost any.

The room is bounded in requests and bytes; each ticket has a deadline. Leaving (granted, cancelled or expired) is O(1):
a ticket that left stays in its queue as a husk and is skipped when it comes to the front, and the queues are swept when
husks outnumber tickets. The room says who is next or expired; waking them is the caller's affair.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush
from typing import Final


class Full(StrEnum):
    """Why a room takes no more."""

    REQUESTS = "requests"
    BYTES = "bytes"


@dataclass(frozen=True, slots=True)
class Claim:
    """On whose behalf a request asks for a place."""

    tenant: str = ""
    priority: int = 0
    weight: int = 1
    key: str = ""
    """Requests with the same key go to the same endpoint where that has room; empty: any endpoint."""


ANYONE: Final = Claim()


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request."""

    nbytes: int
    entered: float
    deadline: float
    owner: object = None
    """Whom to wake; not looked at here."""
    claim: Claim = ANYONE
    waiting: bool = field(default=True, init=False)


class _Flow:
    """What one tenant has waiting in one priority."""

    __slots__ = ("count", "queue", "tag", "weight")

    def __init__(self, tag: float) -> None:
        self.queue: deque[Ticket] = deque()
        self.count = 0
        self.tag = tag
        self.weight = 1

    def head(self) -> Ticket | None:
        while self.queue and not self.queue[0].waiting:
            self.queue.popleft()
        return self.queue[0] if self.queue else None


class _Class:
    """What waits in one priority."""

    __slots__ = ("count", "flows", "front", "virtual")

    def __init__(self) -> None:
        self.front: deque[Ticket] = deque()
        self.flows: dict[str, _Flow] = {}
        self.count = 0
        self.virtual = 0.0

    def flow(self, tenant: str) -> _Flow:
        found = self.flows.get(tenant)
        if found is None:
            found = self.flows[tenant] = _Flow(self.virtual)
        return found

    def next_flow(self) -> _Flow | None:
        waiting = [f for f in self.flows.values() if f.head() is not None]
        return min(waiting, key=lambda f: f.tag) if waiting else None

    def first(self) -> Ticket | None:
        while self.front and not self.front[0].waiting:
            self.front.popleft()
        if self.front:
            return self.front[0]
        flow = self.next_flow()
        return flow.queue[0] if flow is not None else None

    def __iter__(self) -> Iterator[Ticket]:
        yield from (t for t in self.front if t.waiting)
        for flow in self.flows.values():
            yield from (t for t in flow.queue if t.waiting)


class Room:
    """Tickets of one model in the order of their turns."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0
        self._classes: dict[int, _Class] = {}
        self._entries = 0
        """Tickets in queues, husks included."""
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._sequence = 0

    def __repr__(self) -> str:
        return f"<Room {self.count} waiting, {self.nbytes} bytes>"

    def full(self, nbytes: int, *, max_requests: int, max_bytes: int) -> Full | None:
        """Which bound one more request of `nbytes` would break."""
        if self.count + 1 > max_requests:
            return Full.REQUESTS
        if self.nbytes + nbytes > max_bytes:
            return Full.BYTES
        return None

    def enter(self, ticket: Ticket, *, front: bool = False) -> None:
        """Queue a ticket; at the front for a request that had its turn and could not be sent."""
        claim = ticket.claim
        level = self._classes.get(claim.priority)
        if level is None:
            level = self._classes[claim.priority] = _Class()
        flow = level.flow(claim.tenant)
        flow.weight = claim.weight
        if not flow.count:
            flow.tag = max(flow.tag, level.virtual)
        if front:
            level.front.appendleft(ticket)
        else:
            flow.queue.append(ticket)
        self._sequence += 1
        heappush(self._deadlines, (ticket.deadline, self._sequence, ticket))
        flow.count += 1
        level.count += 1
        self._entries += 1
        self.count += 1
        self.nbytes += ticket.nbytes

    def leave(self, ticket: Ticket) -> bool:
        """Take a ticket out; False where it has left already."""
        if not ticket.waiting:
            return False
        ticket.waiting = False
        self.count -= 1
        self.nbytes -= ticket.nbytes
        level = self._classes[ticket.claim.priority]
        level.count -= 1
        level.flows[ticket.claim.tenant].count -= 1
        if not level.count:
            del self._classes[ticket.claim.priority]
        if self._entries > 2 * self.count + 16:
            self._sweep()
        if len(self._deadlines) > 2 * self.count + 16:
            self._deadlines = [d for d in self._deadlines if d[2].waiting]
            heapify(self._deadlines)
        return True

    def take(self, ticket: Ticket) -> None:
        """Take out the ticket that `first` gave, and count it as its tenant's turn."""
        level = self._classes[ticket.claim.priority]
        if not (level.front and level.front[0] is ticket):
            flow = level.flows[ticket.claim.tenant]
            level.virtual = max(level.virtual, flow.tag)
            flow.tag += 1 / flow.weight
        self.leave(ticket)

    def first(self) -> Ticket | None:
        """Whose turn it is."""
        for priority in sorted(self._classes, reverse=True):
            ticket = self._classes[priority].first()
            if ticket is not None:
                return ticket
        return None

    def outranked(self, claim: Claim) -> Ticket | None:
        """The ticket that a full room gives up for this claim: the newest of the lowest priority; None where all rank
        as high, and no tenant holds more of the room for its weight than this one would.
        """
        if not self._classes:
            return None
        lowest = min(self._classes)
        level = self._classes[lowest]
        name, flow = max(level.flows.items(), key=lambda item: item[1].count / item[1].weight)
        if lowest > claim.priority:
            return None
        if lowest == claim.priority:
            own = level.flows.get(claim.tenant)
            share = ((own.count if own else 0) + 1) / claim.weight
            if name == claim.tenant or flow.count / flow.weight <= share:
                return None
        return next((t for t in reversed(flow.queue) if t.waiting), None)

    def expire(self, now: float) -> list[Ticket]:
        """Take out all tickets whose deadline has come, the earliest first."""
        expired = []
        while self._deadlines and (not self._deadlines[0][2].waiting or self._deadlines[0][0] <= now):
            ticket = heappop(self._deadlines)[2]
            if self.leave(ticket):
                expired.append(ticket)
        return expired

    def next_deadline(self) -> float | None:
        """When `expire` next has something to do."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def clear(self) -> list[Ticket]:
        """Take out all tickets, in order."""
        tickets = [t for priority in sorted(self._classes, reverse=True) for t in self._classes[priority]]
        for ticket in tickets:
            self.leave(ticket)
        self._classes.clear()
        self._entries = 0
        self._deadlines.clear()
        return tickets

    def _sweep(self) -> None:
        for level in self._classes.values():
            level.front = deque(t for t in level.front if t.waiting)
            for flow in level.flows.values():
                flow.queue = deque(t for t in flow.queue if t.waiting)
        self._entries = self.count
