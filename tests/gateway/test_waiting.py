from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.waiting import Full, Room, Ticket


def test_first_in_first_out():
    room = Room()
    tickets = [Ticket(1, 0.0, 10.0) for _ in range(3)]
    for ticket in tickets:
        room.enter(ticket)
    order = []
    while (ticket := room.first()) is not None:
        room.leave(ticket)
        order.append(ticket)
    assert order == tickets
    assert repr(room) == "<Room 0 waiting, 0 bytes>"


def test_a_request_that_had_its_turn_goes_to_the_front():
    room = Room()
    early, late = Ticket(0, 0.0, 9.0), Ticket(0, 1.0, 9.0)
    room.enter(late)
    room.enter(early, front=True)
    assert room.first() is early


def test_bounds_in_requests_and_bytes():
    room = Room()
    assert room.full(10, max_requests=0, max_bytes=100) is Full.REQUESTS
    room.enter(Ticket(60, 0.0, 1.0))
    assert room.full(41, max_requests=2, max_bytes=100) is Full.BYTES
    assert room.full(40, max_requests=2, max_bytes=100) is None
    assert room.full(0, max_requests=1, max_bytes=100) is Full.REQUESTS


def test_tickets_expire_at_their_own_deadline():
    room = Room()
    late, soon = Ticket(1, 0.0, 5.0), Ticket(1, 0.0, 2.0)
    room.enter(late)
    room.enter(soon)
    assert room.next_deadline() == 2.0
    assert room.expire(1.9) == []
    assert room.expire(2.0) == [soon]
    assert room.first() is late
    assert room.next_deadline() == 5.0


def test_leaving_twice_counts_once():
    room = Room()
    ticket = Ticket(7, 0.0, 1.0)
    room.enter(ticket)
    assert room.leave(ticket)
    assert not room.leave(ticket)
    assert (room.count, room.nbytes, room.first(), room.next_deadline()) == (0, 0, None, None)


@given(st.lists(st.integers(0, 9), max_size=200))
def test_husks_do_not_pile_up(choices):
    room = Room()
    waiting: list[Ticket] = []
    for choice in choices:
        ticket = Ticket(1, 0.0, 1.0)
        room.enter(ticket)
        waiting.append(ticket)
        if choice and waiting:
            room.leave(waiting.pop(choice % len(waiting)))
    assert len(room._queue) <= 2 * room.count + 17
    assert len(room._deadlines) <= 2 * room.count + 17


class RoomMachine(RuleBasedStateMachine):
    """A room against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        self.expected: list[Ticket] = []
        self.now = 0.0

    @rule(nbytes=st.integers(0, 100), wait=st.floats(0, 10), front=st.booleans())
    def enter(self, nbytes: int, wait: float, front: bool) -> None:
        ticket = Ticket(nbytes, self.now, self.now + wait)
        self.room.enter(ticket, front=front)
        self.expected.insert(0 if front else len(self.expected), ticket)

    @rule(index=st.integers(0, 50))
    def leave(self, index: int) -> None:
        if self.expected:
            assert self.room.leave(self.expected.pop(index % len(self.expected)))

    @rule(step=st.floats(0, 5))
    def expire(self, step: float) -> None:
        self.now += step
        expired = self.room.expire(self.now)
        assert set(map(id, expired)) == {id(t) for t in self.expected if t.deadline <= self.now}
        assert [t.deadline for t in expired] == sorted(t.deadline for t in expired)
        self.expected = [t for t in self.expected if t.deadline > self.now]

    @rule()
    def clear(self) -> None:
        assert self.room.clear() == self.expected
        self.expected = []

    @invariant()
    def agrees(self) -> None:
        assert self.room.count == len(self.expected)
        assert self.room.nbytes == sum(t.nbytes for t in self.expected)
        assert self.room.first() is (self.expected[0] if self.expected else None)
        assert self.room.next_deadline() == min((t.deadline for t in self.expected), default=None)


TestRoomMachine = RoomMachine.TestCase
