from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.counts import COLUMNS, Counts
from gateway.limits import Bucket, Limited, Limits, Queue

from .sharing import Machine, memory, share


def limited(slot: int = 0, concurrency: int = 0) -> Limited:
    return Limited(slot, concurrency)


def test_one_worker_holds_the_limit_by_itself():
    limits, place = Limits(), limited(concurrency=2)
    assert [limits.acquire(place) for _ in range(3)] == [True, True, False]
    assert not limits.has_room(place)
    limits.release(place)
    assert limits.has_room(place)
    assert limits.load(place) == place.in_flight == 1


def test_no_limit_is_no_limit():
    limits, place = Limits(), limited()
    assert all(limits.acquire(place) for _ in range(1000))


def test_a_limit_smaller_than_the_number_of_workers_holds_exactly():
    workers = share(4)
    places = [limited(slot=7, concurrency=1) for _ in workers]
    taken = [w.acquire(p) for w, p in zip(workers, places, strict=True)]
    assert taken == [True, False, False, False]
    assert [w.load(p) for w, p in zip(workers, places, strict=True)] == [1, 1, 1, 1]
    workers[0].release(places[0])
    assert workers[3].acquire(places[3])


def test_slots_beyond_the_columns_share_one_and_never_exceed():
    (limits,) = share(1)
    one, two = limited(slot=1, concurrency=1), limited(slot=1 + COLUMNS, concurrency=1)
    assert limits.acquire(one)
    assert not limits.acquire(two)


def test_a_moved_endpoint_takes_its_count_along():
    first, second = share(2)
    place, seen = limited(slot=1, concurrency=2), limited(slot=5, concurrency=2)
    assert first.acquire(place)
    place.slot = 5
    first.move(place, 1)
    assert second.load(seen) == 1
    assert second.load(limited(slot=1)) == 0
    first.release(place)
    assert second.load(seen) == 0


def test_releasing_what_was_not_acquired_is_an_error():
    with pytest.raises(ValueError, match="more often"):
        Limits().release(limited())


@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.booleans()), max_size=100),
)
def test_no_sequence_exceeds_a_limit_and_all_returns_to_zero(count, limit, steps):
    workers = share(count)
    places = [[limited(slot=s, concurrency=limit) for s in range(2)] for _ in workers]
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


#: Mostly steps; some stores that are seen late, few deaths.
SCHEDULES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["step"] * 12 + ["flush"] * 3 + ["kill"])), max_size=90
)


@settings(max_examples=150)
@given(st.integers(2, 3), st.integers(1, 2), SCHEDULES)
def test_no_interleaving_of_steps_exceeds_a_limit_and_the_dead_leave_room(count, limit, schedule):
    machine = Machine(count)
    holding: set[tuple[int, int]] = set()
    most = 0
    places = [limited(slot=3, concurrency=limit) for _ in range(count)]

    def program(worker: int) -> None:
        nonlocal most
        limits, place = machine.limits[worker], places[worker]
        try:
            for turn in range(3):
                if limits.acquire(place):
                    holding.add((worker, turn))
                    most = max(most, len(holding))
                    assert len(holding) <= limit
                    # While it is held, the others get some steps of theirs in.
                    limits.load(place)
                    holding.discard((worker, turn))
                    limits.release(place)
        finally:
            # With its process ends what it had in flight.
            holding.difference_update({(worker, turn) for turn in range(3)})

    machine.run([lambda w=w: program(w) for w in range(count)], schedule)
    # Nothing is left behind: the whole limit can be had again, and no more.
    living = next((w for w in range(count) if not machine._killed[w]), None)
    if living is not None:
        place = limited(slot=3, concurrency=limit)
        assert [machine.limits[living].acquire(place) for _ in range(limit + 1)] == [True] * limit + [False]


def test_without_the_fence_two_would_go_in():
    """The machine above can tell: it is the fence that keeps the limit."""
    machine = Machine(2)
    for limits in machine.limits:
        limits._counts.fence = lambda: None
    got = []
    places = [limited(slot=3, concurrency=1) for _ in range(2)]
    programs = [lambda w=w: got.append(machine.limits[w].acquire(places[w])) for w in range(2)]
    machine.run(programs, [(0, "step"), (1, "step")] * 10)
    assert got == [True, True]


def test_only_near_the_limit_a_fence_is_needed():
    cells = memory(3)
    fences: list[int] = []
    one, two = (Limits(Counts(cells, row, lambda: fences.append(1))) for row in range(2))
    mine, theirs = limited(3, 100), limited(3, 100)
    assert all(two.acquire(theirs) for _ in range(60))
    assert not fences
    assert [one.acquire(mine) for _ in range(41)] == [True] * 40 + [False]
    assert 3 <= len(fences) <= 10
    assert one.load(mine) == 100


# --- requests a second ---


def test_a_bucket_lets_a_burst_through_and_then_its_rate():
    bucket = Bucket(rate=10.0, burst=3.0)
    taken = []
    for step in range(200):
        now = step / 100
        while bucket.wait_s(now) == 0:
            bucket.take(now)
            taken.append(now)
    assert taken[:3] == [0.0, 0.0, 0.0]
    assert len(taken) == 3 + 19
    assert bucket.wait_s(1.99) == pytest.approx(0.01, abs=1e-6)


@given(
    st.integers(1, 4),
    st.sampled_from([0.5, 2.0, 10.0]),
    st.sampled_from([1.0, 3.0, 20.0]),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 32)), min_size=20, max_size=80),
)
def test_a_rate_holds_over_all_workers_however_they_share_it(count, rate, burst, arrivals):
    buckets = [limits.bucket(rate, burst, 9) for limits in share(count)]
    alone = Bucket(rate, burst)
    now, taken, expected = 0.0, [], 0
    for worker, pause in arrivals:
        now += pause / 64
        bucket = buckets[worker % count]
        if bucket.wait_s(now) == 0:
            bucket.take(now)
            taken.append(now)
        if alone.wait_s(now) == 0:
            alone.take(now)
            expected += 1
    assert len(taken) == expected
    for first, begin in enumerate(taken):
        for last in range(first, len(taken)):
            assert last - first + 1 <= burst + rate * (taken[last] - begin) + 1e-6


@given(
    st.integers(2, 4), st.integers(0, 10**6), st.sampled_from([0.3, 0.9, 1.1, 3.0]), st.sampled_from([256.0, 1280.0])
)
def test_of_a_large_bucket_each_worker_knows_all_but_a_128th_and_never_sees_more_than_there_is(
    count, seed, demand, burst
):
    rate = 1000.0
    rng = random.Random(seed)
    buckets = [limits.bucket(rate, burst, 9) for limits in share(count)]
    true = Bucket(rate, burst)
    now = 0.0
    for _ in range(6000):
        now += rng.expovariate(rate * demand) if rng.random() > 0.001 else rng.uniform(0, 2)
        # Some workers have more to do than others, so that some see many tokens gone at once.
        bucket = buckets[min(int(rng.expovariate(1.0)), count - 1)]
        wait, least = bucket.wait_s(now), true.wait_s(now)
        assert least - 1e-6 <= wait <= least + burst / 128 / rate + 1e-6
        if wait == 0:
            bucket.take(now)
            true.take(now)


def test_a_token_that_another_worker_took_is_gone_at_once():
    one, two = (limits.bucket(1.0, 2.0, 9) for limits in share(2))
    one.take(0.0)
    one.take(0.0)
    assert two.wait_s(0.0) == pytest.approx(1.0)
    assert two.wait_s(1.0) == 0


def test_workers_that_look_in_the_same_moment_pass_a_burst_by_one_each_at_most_and_pay_it_back():
    buckets = [limits.bucket(1.0, 1.0, 9) for limits in share(3)]
    assert all(b.wait_s(0.0) == 0 for b in buckets)
    for bucket in buckets:
        bucket.take(0.0)
    assert [b.wait_s(0.0) for b in buckets] == [pytest.approx(3.0)] * 3


def test_a_bucket_with_another_slot_keeps_what_was_taken():
    first, second = share(2)
    bucket, other = first.bucket(1.0, 1.0, 4), second.bucket(1.0, 1.0, 5)
    other.take(0.0)
    bucket.take(0.0)
    bucket.take_slot(5)
    assert bucket.wait_s(0.0) == pytest.approx(1.0)
    other.take(0.5)
    assert bucket.wait_s(0.5) == pytest.approx(1.5)


# --- waiting ---


def test_what_waits_elsewhere_is_known():
    first, second = share(2)
    told = Queue()
    first.tell(told, 3, 2, 100)
    assert second.queued_elsewhere(3) == (2, 100)
    assert first.queued_elsewhere(3) == (0, 0)
    first.tell(told, 8, 1, 50)
    assert second.queued_elsewhere(3) == (0, 0)
    assert second.queued_elsewhere(8) == (1, 50)
    first.tell(told, 8, 0, 0)
    assert second.queued_elsewhere(8) == (0, 0)


def test_one_worker_has_nobody_to_tell():
    limits = Limits()
    limits.tell(Queue(), 0, 1, 1)
    assert limits.queued_elsewhere(0) == (0, 0)
