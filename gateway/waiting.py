"""The waiting room of a model: requests that no endpoint can take yet.

First in, first out, bounded in requests and bytes; each ticket has a deadline. Leaving (granted, cancelled or expired)
is O(1): a ticket that left stays in the queue as a husk and is skipped when it comes to the front, and the queue is
swept when husks outnumber tickets. The room says who is next or expired; waking them is the caller's affair.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heappush


class Full(StrEnum):
    """Why a room takes no more."""

    REQUESTS = "requests"
    BYTES = "bytes"


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting request."""

    nbytes: int
    entered: float
    deadline: float
    owner: object = None
    """Whom to wake; not looked at here."""
    waiting: bool = field(default=True, init=False)


class Room:
    """Tickets of one model in order of arrival."""

    def __init__(self) -> None:
        self.count = 0
        self.nbytes = 0
        self._queue: deque[Ticket] = deque()
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
        if front:
            self._queue.appendleft(ticket)
        else:
            self._queue.append(ticket)
        self._sequence += 1
        heappush(self._deadlines, (ticket.deadline, self._sequence, ticket))
        self.count += 1
        self.nbytes += ticket.nbytes

    def leave(self, ticket: Ticket) -> bool:
        """Take a ticket out; False where it has left already."""
        if not ticket.waiting:
            return False
        ticket.waiting = False
        self.count -= 1
        self.nbytes -= ticket.nbytes
        if len(self._queue) > 2 * self.count + 16:
            self._queue = deque(t for t in self._queue if t.waiting)
        if len(self._deadlines) > 2 * self.count + 16:
            self._deadlines = [d for d in self._deadlines if d[2].waiting]
            heapify(self._deadlines)
        return True

    def first(self) -> Ticket | None:
        """Whose turn it is."""
        while self._queue and not self._queue[0].waiting:
            self._queue.popleft()
        return self._queue[0] if self._queue else None

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
        tickets = [t for t in self._queue if t.waiting]
        for ticket in tickets:
            self.leave(ticket)
        self._queue.clear()
        self._deadlines.clear()
        return tickets
