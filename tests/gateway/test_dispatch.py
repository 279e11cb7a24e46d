"""Every decision on virtual time: timelines first, then any history at all."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gateway.dispatch import FOREIGN_POLL_S, Dispatcher, Lease, Outcome, Refusal
from gateway.limits import Limits
from gateway.meter import Meter
from gateway.waiting import Ticket
from gateway.wire import EndpointEntry, ModelEntry, Removal, Settings, SettingsUpdate, Snapshot, Update

from .sharing import share


def at(id: str, slot: int = 0, **fields) -> EndpointEntry:
    return EndpointEntry(id=id, host="127.0.0.1", port=1, slot=slot, **fields)


class Desk:
    """A dispatcher with a clock and version numbers."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.now = 0.0
        self.number = 0
        self.it = Dispatcher(limits or Limits(), Meter(0, "e", 0.0), random.Random(0))

    def table(self, *endpoints: EndpointEntry, name: str = "m", **fields):
        self.number += 1
        model = ModelEntry(name=name, endpoints=endpoints, **fields)
        effects = self.it.apply(Update(term=1, number=self.number, model=model), self.now)
        assert effects is not None
        return effects

    def ask(self, name: str = "m", nbytes: int = 0, timeout_s: float = 60.0, **fields):
        served = self.it.find(name)
        assert served is not None
        return self.it.admit(served, self.now, nbytes=nbytes, gives_up=self.now + timeout_s, **fields)

    @property
    def served(self):
        return self.it.find("m")


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_only_newer_messages_are_taken(desk):
    it = desk.it
    model = ModelEntry(name="m")
    assert it.apply(Snapshot(term=2, number=5, models=(model,)), 0.0) is not None
    for term, number in ((2, 5), (2, 4), (1, 99)):
        assert it.apply(Removal(term=term, number=number, name="m"), 0.0) is None
        assert it.version == (2, 5)
    assert it.names == ["m"]
    assert it.apply(Snapshot(term=3, number=0, models=()), 0.0) is not None
    assert it.names == []


def test_a_snapshot_of_the_table_gives_the_table_again(desk):
    desk.table(at("a"), name="x")
    desk.table(name="y")
    other = Desk()
    other.it.apply(desk.it.table.snapshot(), 0.0)
    assert (other.it.names, other.it.version) == (["x", "y"], desk.it.version)


def test_from_zero(desk):
    desk.table()
    first, second = desk.ask(), desk.ask()
    assert isinstance(first, Ticket)
    assert desk.it.wake(desk.served) == "m"
    assert desk.it.wake(desk.served) is None
    desk.now = 3.0
    effects = desk.table(at("a", concurrency=1))
    ((ticket, lease),) = effects.granted
    assert ticket is first
    assert (lease.start_s, lease.queue_s) == (3.0, 0.0)
    desk.now = 5.0
    effects = desk.it.release(lease, Outcome.ANSWERED, desk.now)
    ((ticket, lease),) = effects.granted
    assert ticket is second
    assert (lease.start_s, lease.queue_s) == (3.0, 2.0)
    desk.it.release(lease, Outcome.ANSWERED, desk.now)
    assert desk.served.meter.idle


def test_the_controller_is_woken_again_only_after_the_table_changed(desk):
    desk.table()
    desk.ask()
    assert desk.it.wake(desk.served) == "m"
    assert desk.table(starting=1).wakes == []
    assert desk.table().wakes == ["m"]
    assert desk.it.wake(desk.served) is None


def test_a_controller_that_connects_hears_who_waits(desk):
    desk.table()
    assert desk.it.wanted() == []
    desk.ask()
    assert desk.it.wanted() == ["m"]


def test_nobody_overtakes(desk):
    desk.table(at("a", concurrency=1))
    lease, waiting = desk.ask(), desk.ask()
    assert isinstance(lease, Lease)
    desk.table(at("a", concurrency=1), at("b", slot=1, concurrency=1))
    assert not waiting.waiting
    late = desk.ask()
    assert isinstance(late, Ticket)


def test_bounds_of_the_queue(desk):
    desk.table(at("a", concurrency=1), queue_max_requests=2, queue_max_bytes=100)
    desk.ask()
    assert isinstance(desk.ask(nbytes=60), Ticket)
    refusal = desk.ask(nbytes=60)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (429, "queue_full")
    assert isinstance(desk.ask(nbytes=40), Ticket)
    assert desk.ask().status == 429


def test_a_full_queue_without_a_replica_is_503(desk):
    desk.table(queue_max_requests=0, expected_ready_s=12.0)
    refusal = desk.ask()
    assert (refusal.status, refusal.retry_after_s) == (503, 12)
    assert desk.it.wake(desk.served) == "m"


def test_retry_after_of_a_busy_model_is_the_time_its_queue_takes(desk):
    desk.table(at("a", concurrency=2), queue_max_requests=3)
    for _ in range(4):
        lease = desk.ask()
        desk.now += 4.0
        desk.it.release(lease, Outcome.ANSWERED, desk.now)
        desk.served.meter.completions += 1
        desk.served.meter.latency_s += 4.0
    for _ in range(5):
        desk.ask()
    # Two in flight that take 4 s each leave one place in 2 s; three wait, and one more.
    assert desk.ask().retry_after_s == 8


def test_the_wait_ends_with_503_or_with_the_requests_own_timeout(desk):
    desk.table(queue_max_s=10.0)
    patient, hasty = desk.ask(timeout_s=60.0), desk.ask(timeout_s=4.0)
    assert desk.it.next_tick(desk.now) == 4.0
    desk.now = 4.0
    ((ticket, refusal),) = desk.it.tick(4.0).refused
    assert (ticket, refusal.status) == (hasty, 504)
    ((ticket, refusal),) = desk.it.tick(10.0).refused
    assert (ticket, refusal.status) == (patient, 503)
    assert desk.it.next_tick(10.0) is None
    assert desk.served.meter.queue.area(20.0) == 14.0


def test_no_hope_means_no_wait(desk):
    desk.table(max_replicas=0)
    assert desk.ask().reason == "no_replicas"
    assert desk.it.wake(desk.served) is None
    desk.table(unavailable="nothing fits")
    assert desk.ask().reason == "unavailable"
    assert desk.it.wake(desk.served) == "m"
    desk.table()
    waiting = desk.ask()
    ((ticket, refusal),) = desk.table(unavailable="it crashes").refused
    assert (ticket, refusal.status) == (waiting, 503)


def test_a_busy_model_for_which_no_more_replicas_can_come_still_queues(desk):
    desk.table(at("a", concurrency=1), unavailable="nothing fits")
    desk.ask()
    assert isinstance(desk.ask(), Ticket)


def test_requests_that_do_not_wake_are_served_but_do_not_wait_for_a_start(desk):
    desk.table()
    assert desk.ask(wakes=False).reason == "asleep"
    desk.table(at("a"))
    assert isinstance(desk.ask(wakes=False), Lease)


def test_a_removed_model_sends_its_waiters_away_and_lets_the_others_finish(desk):
    desk.table(at("a", concurrency=1))
    lease, waiting = desk.ask(), desk.ask()
    desk.number += 1
    effects = desk.it.apply(Removal(term=1, number=desk.number, name="m"), desk.now)
    assert [(t, r.status) for t, r in effects.refused] == [(waiting, 404)]
    assert effects.report
    assert desk.it.find("m") is None
    assert list(desk.it.endpoints()) == ["a"]
    assert desk.it.release(lease, Outcome.ANSWERED, desk.now).report
    assert not desk.it.endpoints()
    desk.it.report(desk.now, full=False)
    assert not desk.it.meter.models


def test_a_drain_is_reported_when_it_is_known_and_when_it_is_done(desk):
    desk.table(at("a"))
    one, two = desk.ask(), desk.ask()
    assert desk.table(at("a", draining=True)).report
    assert not desk.it.release(one, Outcome.ANSWERED, 1.0).report
    assert desk.it.release(two, Outcome.ANSWERED, 2.0).report
    (model,) = desk.it.report(2.0, full=False).models
    assert [(e.id, e.in_flight, e.completions) for e in model.endpoints] == [("a", 0, 2)]


def test_a_refused_connection_sends_the_request_elsewhere_or_to_the_front(desk):
    desk.table(at("a", concurrency=1), queue_max_s=30.0)
    lease, waiting = desk.ask(), desk.ask()
    assert desk.it.release(lease, Outcome.UNREACHABLE, 0.0).granted == []
    again = desk.ask(entered=0.0)
    assert isinstance(again, Ticket)
    assert desk.it.next_tick(0.0) == 0.2
    ((ticket, lease),) = desk.it.tick(0.2).granted
    assert ticket is again
    assert waiting.waiting
    desk.table(at("a", concurrency=1), at("b", slot=1))
    assert not waiting.waiting


def test_a_lease_is_given_back_once(desk):
    desk.table(at("a"))
    lease = desk.ask()
    desk.it.release(lease, Outcome.ANSWERED, 0.0)
    with pytest.raises(ValueError, match="before"):
        desk.it.release(lease, Outcome.ANSWERED, 0.0)


@pytest.mark.parametrize(
    ("outcome", "completions", "failures", "suspended"),
    [
        (Outcome.ANSWERED, 1, 0, False),
        (Outcome.ERROR, 1, 1, False),
        (Outcome.UNREACHABLE, 0, 1, True),
        (Outcome.BROKEN, 0, 1, True),
        (Outcome.TIMED_OUT, 0, 1, False),
        (Outcome.STALE, 0, 0, False),
        (Outcome.ABANDONED, 0, 0, False),
    ],
)
def test_what_an_outcome_says_of_the_endpoint(desk, outcome, completions, failures, suspended):
    desk.table(at("a"))
    lease = desk.ask()
    desk.it.release(lease, outcome, 1.0)
    meter = desk.served.meter.endpoints["a"]
    assert (meter.requests, meter.completions, meter.failures) == (1, completions, failures)
    assert (lease.endpoint.suspended_until > 1.0) == suspended


def test_places_that_another_worker_frees_are_found_by_looking():
    one, two = map(Desk, share(2))
    for desk in (one, two):
        desk.table(at("a", slot=3, concurrency=1))
    lease = one.ask()
    waiting = two.ask()
    assert isinstance(waiting, Ticket)
    assert two.it.next_tick(0.0) == FOREIGN_POLL_S
    assert two.it.tick(FOREIGN_POLL_S).granted == []
    assert one.it.next_tick(0.0) is None
    one.it.release(lease, Outcome.ANSWERED, 1.0)
    assert [t for t, _ in two.it.tick(1.0).granted] == [waiting]
    assert two.it.next_tick(1.0) is None


def test_the_bounds_of_waiting_rooms_hold_over_all_workers():
    one, two = map(Desk, share(2))
    for desk in (one, two):
        desk.table(queue_max_requests=3, queue_max_bytes=100, slot=5)
    waiting = [one.ask(nbytes=10), one.ask(nbytes=10), two.ask(nbytes=10)]
    assert all(isinstance(place, Ticket) for place in waiting)
    assert two.ask().reason == one.ask().reason == "queue_full"
    one.it.cancel(one.served, waiting[0], 0.0)
    assert two.ask(nbytes=81).reason == "queue_full"
    assert isinstance(two.ask(nbytes=80), Ticket)
    # The table moves the model's count; nothing of it is lost.
    for desk in (one, two):
        desk.table(queue_max_requests=3, queue_max_bytes=100, slot=6)
    assert one.ask().reason == "queue_full"


def test_the_bound_over_all_models_holds_over_all_workers():
    one, two = map(Desk, share(2))
    for desk in (one, two):
        desk.number += 1
        desk.it.apply(SettingsUpdate(term=1, number=desk.number, settings=Settings(queue_max_requests=2)), 0.0)
        desk.table(name="m", slot=0)
        desk.table(name="n", slot=1)
    assert isinstance(one.ask("m"), Ticket)
    held = two.ask("n")
    assert isinstance(held, Ticket)
    assert one.ask("n").reason == "queue_full"
    two.it.tick(1000.0)
    assert isinstance(one.ask("n"), Ticket)


class History(RuleBasedStateMachine):
    """Two workers that share limits, a controller that changes its mind, clients that come and go."""

    names = ("m", "n")

    def __init__(self) -> None:
        super().__init__()
        self.desks = [Desk(limits) for limits in share(2)]
        self.leases: list[tuple[Desk, Lease]] = []
        self.tickets: list[tuple[Desk, str, Ticket]] = []
        self.highest: dict[str, int] = {}
        self.versions = [(0, 0), (0, 0)]

    def follow(self, desk: Desk, effects) -> None:
        for ticket, lease in effects.granted:
            assert not ticket.waiting
            self.leases.append((desk, lease))
        settled = {id(t) for t, _ in effects.granted} | {id(t) for t, _ in effects.refused}
        self.tickets = [entry for entry in self.tickets if id(entry[2]) not in settled]

    @rule(name=st.sampled_from(names), spec=st.lists(st.tuples(st.integers(1, 2), st.booleans()), max_size=3))
    def publish(self, name, spec):
        base = 0 if name == "m" else 8
        entries = [at(f"{name}{n}", base + n, concurrency=c, draining=d) for n, (c, d) in enumerate(spec)]
        for desk in self.desks:
            self.follow(desk, desk.table(*entries, name=name, queue_max_requests=3, queue_max_s=5.0))

    @rule(name=st.sampled_from(names))
    def remove(self, name):
        for desk in self.desks:
            desk.number += 1
            self.follow(desk, desk.it.apply(Removal(term=1, number=desk.number, name=name), desk.now))

    @rule(which=st.integers(0, 1), name=st.sampled_from(names), nbytes=st.integers(0, 10))
    def arrive(self, which, name, nbytes):
        desk = self.desks[which]
        if desk.it.find(name) is None:
            return
        place = desk.ask(name, nbytes)
        if isinstance(place, Lease):
            self.leases.append((desk, place))
        elif isinstance(place, Ticket):
            self.tickets.append((desk, name, place))

    @rule(index=st.integers(0, 99), outcome=st.sampled_from(Outcome))
    def finish(self, index, outcome):
        if self.leases:
            desk, lease = self.leases.pop(index % len(self.leases))
            self.follow(desk, desk.it.release(lease, outcome, desk.now))

    @rule(index=st.integers(0, 99))
    def give_up(self, index):
        if self.tickets:
            desk, name, ticket = self.tickets.pop(index % len(self.tickets))
            desk.it.cancel(desk.it._served[name], ticket, desk.now)

    @rule(step=st.floats(0.001, 3.0))
    def wait(self, step):
        for desk in self.desks:
            desk.now += step
            self.follow(desk, desk.it.tick(desk.now))

    @rule(which=st.integers(0, 1), full=st.booleans())
    def report(self, which, full):
        desk = self.desks[which]
        desk.it.report(desk.now, full=full)

    @invariant()
    def counts_agree(self):
        for desk in self.desks:
            mine = [lease for d, lease in self.leases if d is desk]
            for endpoint in desk.it.endpoints().values():
                assert endpoint.in_flight == sum(1 for lease in mine if lease.endpoint is endpoint)
            for model in desk.it.meter.models.values():
                assert model.flight.value == sum(1 for lease in mine if lease.served.meter is model)
                waiting = [t for d, n, t in self.tickets if d is desk and n == model.name]
                assert model.queue.value == len(waiting)
                assert all(t.waiting for t in waiting)

    @invariant()
    def limits_hold(self):
        # A limit may be lowered under what is in flight; nothing new is then let in.
        held: dict[str, int] = {}
        for _, lease in self.leases:
            held[lease.endpoint.id] = held.get(lease.endpoint.id, 0) + 1
        for id, count in held.items():
            limit = max(d.it.endpoints()[id].concurrency for d in self.desks if id in d.it.endpoints())
            assert count <= max(limit, self.highest.get(id, 0))
        self.highest = held

    @invariant()
    def versions_grow(self):
        versions = [desk.it.version for desk in self.desks]
        assert all(new >= old for new, old in zip(versions, self.versions, strict=True))
        self.versions = versions

    def teardown(self):
        for desk, name, ticket in self.tickets:
            desk.it.cancel(desk.it._served[name], ticket, desk.now)
        self.tickets.clear()
        while self.leases:
            desk, lease = self.leases.pop()
            self.follow(desk, desk.it.release(lease, Outcome.ANSWERED, desk.now))
        for desk in self.desks:
            assert all(m.idle for m in desk.it.meter.models.values())
            assert not any(e.in_flight for e in desk.it.endpoints().values())
            assert desk.it.next_tick(desk.now) is None
            assert not desk.it.limits._counts.own.tobytes().strip(b"\0")


History.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestHistory = History.TestCase
