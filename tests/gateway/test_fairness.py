"""Who is next in a waiting room: priorities, tenants in turn, and who gives way where it is full."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.waiting import Claim, Room, Ticket


def enter(room: Room, tenant: str, *, priority: int = 0, weight: int = 1) -> Ticket:
    ticket = Ticket(0, 0.0, 99.0, claim=Claim(tenant, priority, weight))
    room.enter(ticket)
    return ticket


def serve(room: Room, count: int) -> list[str]:
    served = []
    for _ in range(count):
        ticket = room.first()
        assert ticket is not None
        room.take(ticket)
        served.append(ticket.claim.tenant)
    return served


def test_a_flood_of_one_tenant_does_not_starve_another():
    room = Room()
    for _ in range(100):
        enter(room, "loud")
    for _ in range(3):
        enter(room, "quiet")
    assert Counter(serve(room, 6)) == {"loud": 3, "quiet": 3}


def test_turns_are_in_proportion_to_weights():
    room = Room()
    for _ in range(100):
        enter(room, "gold", weight=3)
        enter(room, "iron")
    assert Counter(serve(room, 40)) == {"gold": 30, "iron": 10}


def test_idling_saves_up_no_turns():
    room = Room()
    for _ in range(50):
        enter(room, "steady")
    serve(room, 20)
    for _ in range(50):
        enter(room, "late")
    assert Counter(serve(room, 20)) == {"late": 10, "steady": 10}


def test_higher_priority_first_whoever_came_before():
    room = Room()
    for _ in range(3):
        enter(room, "batch", priority=-10)
    enter(room, "live", priority=5)
    enter(room, "usual")
    assert serve(room, 5) == ["live", "usual", "batch", "batch", "batch"]


def test_a_full_room_gives_up_the_newest_of_the_lowest_priority():
    room = Room()
    enter(room, "batch", priority=-1)
    newest = enter(room, "batch", priority=-1)
    enter(room, "usual")
    assert room.outranked(Claim("usual")) is newest
    assert room.outranked(Claim("batch", -1)) is None
    assert room.outranked(Claim("worse", -2)) is None


def test_a_full_room_gives_up_the_newest_of_who_holds_more_than_its_share():
    room = Room()
    loud = [enter(room, "loud") for _ in range(10)]
    assert room.outranked(Claim("quiet")) is loud[-1]
    assert room.outranked(Claim("loud")) is None
    for _ in range(9):
        enter(room, "quiet")
    assert room.outranked(Claim("quiet")) is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 3), st.booleans()), max_size=60))
def test_nobody_is_forgotten(entries):
    room = Room()
    left = 0
    for tenant, priority, weight, leaves in entries:
        ticket = enter(room, tenant, priority=priority, weight=weight)
        if leaves:
            room.leave(ticket)
            left += 1
    served = serve(room, len(entries) - left)
    assert len(served) == len(entries) - left
    assert (room.first(), room.count, room.nbytes) == (None, 0, 0)
