from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import COLUMNS, Limits, size


@dataclass
class Place:
    slot: int = 0
    concurrency: int = 0
    in_flight: int = 0


def several(workers: int) -> list[Limits]:
    memory = memoryview(bytearray(size(workers)))
    return [Limits(memory, index=n, workers=workers) for n in range(workers)]


def test_one_worker_holds_the_limit_by_itself():
    limits, place = Limits(), Place(concurrency=2)
    assert [limits.acquire(place) for _ in range(3)] == [True, True, False]
    assert not limits.has_room(place)
    limits.release(place)
    assert limits.has_room(place)
    assert limits.load(place) == place.in_flight == 1


def test_no_limit_is_no_limit():
    limits, place = Limits(), Place()
    assert all(limits.acquire(place) for _ in range(1000))


def test_a_limit_smaller_than_the_number_of_workers_holds_exactly():
    workers = several(4)
    places = [Place(slot=7, concurrency=1) for _ in workers]
    taken = [w.acquire(p) for w, p in zip(workers, places, strict=True)]
    assert taken == [True, False, False, False]
    assert [w.load(p) for w, p in zip(workers, places, strict=True)] == [1, 1, 1, 1]
    workers[0].release(places[0])
    assert workers[3].acquire(places[3])


def test_a_worker_that_starts_again_gives_back_what_its_predecessor_held():
    memory = memoryview(bytearray(size(2)))
    dead, other = Limits(memory, index=0, workers=2), Limits(memory, index=1, workers=2)
    assert dead.acquire(Place(concurrency=1))
    place = Place(concurrency=1)
    assert not other.acquire(place)
    Limits(memory, index=0, workers=2)
    assert other.acquire(place)


def test_slots_beyond_the_row_share_a_cell_and_never_exceed():
    (limits,) = several(1)
    one, two = Place(slot=1, concurrency=1), Place(slot=1 + COLUMNS, concurrency=1)
    assert limits.acquire(one)
    assert not limits.acquire(two)


def test_a_moved_endpoint_takes_its_count_along():
    first, second = several(2)
    place, seen = Place(slot=1, concurrency=2), Place(slot=5, concurrency=2)
    assert first.acquire(place)
    place.slot = 5
    first.move(place, 1)
    assert second.load(seen) == 1
    assert second.load(Place(slot=1)) == 0
    first.release(place)
    assert second.load(seen) == 0


def test_releasing_what_was_not_acquired_is_an_error():
    with pytest.raises(ValueError, match="more often"):
        Limits().release(Place())


@pytest.mark.parametrize(("index", "nbytes"), [(2, size(2)), (-1, size(2)), (0, 10)])
def test_a_row_that_does_not_exist_is_an_error(index, nbytes):
    with pytest.raises(ValueError):
        Limits(memoryview(bytearray(nbytes)), index=index, workers=2)


def test_the_fence_lies_between_writing_and_reading():
    memory = memoryview(bytearray(size(2)))
    other = Limits(memory, index=1, workers=2)
    rival = Place(concurrency=1)
    limits = Limits(memory, index=0, workers=2, fence=lambda: outcomes.append(other.acquire(rival)))
    outcomes: list[bool] = []
    place = Place(concurrency=1)
    # The rival comes between our write and our read: it must see us and step back.
    assert limits.acquire(place)
    assert outcomes == [False]


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.booleans()), max_size=100),
)
def test_no_interleaving_exceeds_a_limit_and_all_returns_to_zero(count, limit, steps):
    workers = several(count)
    places = [[Place(slot=s, concurrency=limit) for s in range(2)] for _ in workers]
    for worker, slot, takes in steps:
        worker %= count
        place = places[worker][slot]
        if takes:
            before = sum(p[slot].in_flight for p in places)
            assert workers[worker].acquire(place) == (before < limit)
        elif place.in_flight:
            workers[worker].release(place)
        assert sum(p[slot].in_flight for p in places) <= limit
        assert workers[0].load(places[0][slot]) == sum(p[slot].in_flight for p in places)
    for worker, mine in zip(workers, places, strict=True):
        for place in mine:
            while place.in_flight:
                worker.release(place)
    assert all(w.load(p) == 0 for w, mine in zip(workers, places, strict=True) for p in mine)
