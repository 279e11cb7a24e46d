"""A full fleet is divided: nobody starves, what is granted fits, and it is not divided anew each second."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from autoscaler.quota import SUFFER_S, Claim
from packer.inventory import Device, Inventory, Node
from packer.verify import verify
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Desired, Division, Drain, Observed, Plan, Start, Stop, apply
from tangram.core.replica import Observation, Phase, Replica, observe
from tangram.spec import Model


class World:
    """A fleet whose processes are ready at once and leave at once; models want what the test says."""

    def __init__(self, fleet: Inventory, *models: Model) -> None:
        self.fleet, self.models = fleet, {m.name: m for m in models}
        self.replicas: tuple[Replica, ...] = ()
        self.ordinals: dict[str, int] = {}
        self.division: Division | None = None
        self.attempts: dict[str, Any] = {}
        self.wanted: dict[str, int] = {}
        self.rates: dict[str, float] = {}
        self.floors: dict[str, int] = {}
        self.suffered: dict[str, float] = {}
        self.broken: set[str] = set()
        """Models whose replicas are never ready."""
        self.now = 1000.0

    def plan(self) -> Plan:
        desired = {
            n: Desired(
                m,
                self.wanted.get(n, 0),
                claim=Claim(
                    n, 0, self.rates.get(n, 10.0), 10.0, floor=self.floors.get(n, 0), suffered=self.suffered.get(n, 0.0)
                ),
            )
            for n, m in self.models.items()
        }
        drained = frozenset(r.name for r in self.replicas if r.phase is Phase.DRAINING and r.since < self.now)
        observed = Observed(self.replicas, drained, self.attempts, self.ordinals, division=self.division)
        outcome = plan(observed, desired, ledger_of(self.fleet, self.replicas), self.now)
        self.division = outcome.division
        self.attempts.update(outcome.attempts)
        for action in outcome.actions:
            if isinstance(action, Start):
                model, _, number = action.replica.name.rpartition("-")
                self.ordinals[model] = max(self.ordinals.get(model, 1), int(number) + 1)
        self.replicas = apply(self.replicas, outcome.actions, self.now)
        assert verify(ledger_of(self.fleet, self.replicas).inventory()) == []
        return outcome

    def settle(self) -> Plan:
        """Plan until nothing is left to do, starts and drains taking no time."""
        for _ in range(20):
            outcome = self.plan()
            if not outcome.actions and all(r.phase is Phase.READY for r in self.replicas):
                return outcome
            self.let_be()
        raise AssertionError(f"it never comes to rest: {outcome.actions}")

    def let_be(self, seconds: float = 100.0) -> None:
        """What starts is ready, and what leaves has gone."""
        after = []
        for replica in self.replicas:
            leaves = replica.phase is Phase.STOPPING
            ready = not leaves and replica.model not in self.broken
            seen = Observation(alive=not leaves, ready=ready, pid=1, started_at=self.now)
            kept, _ = observe(replica, seen, self.now)
            after += [kept] if kept else []
        self.replicas = tuple(after)
        self.now += seconds

    def counts(self) -> dict[str, int]:
        return {n: sum(r.model == n and r.live for r in self.replicas) for n in self.models}


@pytest.fixture
def small() -> Inventory:
    """Room for eight slices of 400 MiB, two a device."""
    return Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 1000) for i in range(4)))


def test_who_has_all_makes_room_for_who_has_nothing(small: Inventory, make_model: Any) -> None:
    world = World(small, make_model("first"), make_model("second"))
    world.wanted, world.rates = {"first": 8}, {"first": 75.0, "second": 25.0}
    world.settle()
    assert world.counts() == {"first": 8, "second": 0}
    world.wanted["second"] = 3
    outcome = world.plan()
    assert {type(a) for a in outcome.actions} == {Drain}
    assert "room is being made: first-" in outcome.waiting["second"]
    assert outcome.division is not None
    assert sum(share.granted for share in outcome.division.shares.values()) == 8
    assert str(outcome.shortage("first")).startswith("granted ")
    world.let_be()
    outcome = world.settle()
    assert sum(world.counts().values()) == 8
    assert world.counts()["second"] >= 1
    assert outcome.refusals["first"][0].refusals[0].reason == "memory", "the packer says what is missing"


def test_while_all_fits_nothing_is_divided(small: Inventory, make_model: Any) -> None:
    world = World(small, make_model("first"), make_model("second"))
    world.wanted = {"first": 5, "second": 3}
    outcome = world.settle()
    assert outcome.division is None
    assert world.counts() == world.wanted


def test_a_higher_priority_is_served_first_and_the_others_not_starved(small: Inventory, make_model: Any) -> None:
    models = [make_model("vital", priority=5), make_model("a"), make_model("b")]
    world = World(small, *models)
    world.wanted = {"vital": 8, "a": 8, "b": 8}
    world.rates = {"vital": 79.0, "a": 79.0, "b": 79.0}
    world.settle()
    assert world.counts() == {"vital": 6, "a": 1, "b": 1}


def test_the_least_counts_of_the_highest_priority_come_first(small: Inventory, make_model: Any) -> None:
    world = World(small, make_model("low"), make_model("high", priority=1))
    world.wanted, world.floors = {"low": 8, "high": 7}, {"high": 7, "low": 4}
    world.settle()
    assert world.counts() == {"low": 1, "high": 7}


def test_a_little_more_or_less_load_moves_no_replica(small: Inventory, make_model: Any) -> None:
    world = World(small, make_model("first"), make_model("second"))
    world.wanted, world.rates = {"first": 7, "second": 7}, {"first": 60.0, "second": 60.0}
    world.settle()
    before = world.counts()
    for first in (58.0, 63.0, 61.0, 57.0):
        world.rates["first"] = first
        assert world.plan().actions == ()
    assert world.counts() == before


def test_what_is_granted_is_not_beside_a_replica_that_shares_the_device_otherwise(make_model: Any) -> None:
    """One GPU is shared by MPS or in time: who stays would keep the place of the other from it for ever."""
    both = frozenset({"mps", "timeslice"})
    fleet = Inventory((Node("n"),), (Device("n/gpu-0", "n", "GPU", 1000, mechanisms=both),))
    first, then = (
        make_model(name, slice={"memory": {"request": "300Mi"}, "mechanism": by}, priority=priority)
        for name, by, priority in (("first", "mps", 0), ("then", "timeslice", 1))
    )
    world = World(fleet, first, then)
    world.wanted = {"first": 1, "then": 0}
    world.settle()
    assert world.counts() == {"first": 1, "then": 0}
    world.wanted = {"first": 1, "then": 1}
    world.now += 60
    assert world.plan().waiting == {"then": "room is being made: first-1 leaves"}
    world.settle()
    assert world.counts() == {"first": 0, "then": 1}


def test_a_replica_just_ready_is_not_taken_for_a_little_less_harm(small: Inventory, make_model: Any) -> None:
    world = World(small, make_model("first"), make_model("second"))
    world.wanted, world.rates = {"first": 8, "second": 8}, {"first": 60.0, "second": 10.0}
    world.settle()
    world.rates = {"first": 10.0, "second": 60.0}
    world.replicas = tuple(replace(r, since=world.now - 5.0) for r in world.replicas)
    assert world.plan().actions == ()
    world.now += 60.0
    assert any(isinstance(a, Drain) and a.model == "first" for a in world.plan().actions)


def test_what_leaves_is_where_the_room_is_needed(make_model: Any) -> None:
    """Only one device has the label that the waiting model wants: who lies there leaves."""
    devices = tuple(Device(f"a/gpu-{i}", "a", "virtual", 1000, labels={"kind": f"k{i}"}) for i in range(4))
    picky = make_model(
        "picky", slice={"memory": {"request": "400Mi"}, "deviceSelector": {"matchLabels": {"kind": "k2"}}}
    )
    world = World(Inventory((Node("a"),), devices), make_model("first"), picky)
    world.wanted, world.rates = {"first": 8}, {"first": 75.0}
    world.settle()
    world.wanted["picky"] = 1
    world.settle()
    assert world.counts() == {"first": 7, "picky": 1}


def test_two_who_both_want_the_last_place_take_long_turns(make_model: Any) -> None:
    fleet = Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 500) for i in range(3)))
    world = World(fleet, make_model("first"), make_model("second"))
    world.wanted, world.rates = {"first": 2, "second": 2}, {"first": 19.0, "second": 19.0}
    world.settle()
    world.suffered = dict.fromkeys(world.models, 0.0)
    taken, end = [], world.now + 3 * 3600.0
    while world.now < end:
        for name, count in world.counts().items():
            world.suffered[name] += 10.0 / SUFFER_S * (1.0 - count / 2 - world.suffered[name])
        taken += [world.now for a in world.plan().actions if isinstance(a, Drain)]
        world.let_be(10.0)
    assert 2 <= len(taken) <= 9, "no more often than every twenty minutes"
    assert sum(world.counts().values()) >= 2


def test_who_was_refused_of_late_gets_what_is_free_first(make_model: Any) -> None:
    devices = tuple(Device(f"a/gpu-{i}", "a", "virtual", 500) for i in range(3))
    world = World(Inventory((Node("a"),), devices[:2]), make_model("first"), make_model("second"))
    world.wanted, world.rates = {"first": 2, "second": 2}, {"first": 19.0, "second": 19.0}
    world.settle()
    world.suffered = {"second": 0.5}
    world.fleet = Inventory((Node("a"),), devices)
    world.settle()
    assert world.counts() == {"first": 1, "second": 2}


def test_nobody_leaves_again_and_again_for_a_model_whose_starts_all_fail(make_model: Any) -> None:
    fleet = Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 500) for i in range(2)))
    broken = make_model("broken", priority=1, runtime={"progressDeadlineSeconds": 90})
    world = World(fleet, make_model("works"), broken)
    world.broken = {"broken"}
    world.wanted, world.rates = {"works": 2}, {"works": 19.0}
    world.settle()
    world.wanted["broken"] = 1
    left = []
    for _ in range(30):
        outcome = world.plan()
        left += [a for a in outcome.actions if isinstance(a, Drain | Stop) and a.model == "works"]
        world.let_be()
    assert len(left) <= 2, "one drain and its stop"
    assert world.counts() == {"works": 2, "broken": 0}
    assert "passed the progress deadline" in outcome.waiting["broken"]
    assert outcome.refusals["broken"], "what is missing is told all the same"
    world.now += 3600.0
    assert any(isinstance(a, Drain) for a in world.plan().actions), "and then it is tried once more"


def test_a_model_that_fits_nowhere_does_not_keep_others_from_moving(small: Inventory, make_model: Any) -> None:
    """A move lets the second model in; without it one of the first would have to leave before its successor starts."""
    fleet = replace(small, devices=small.devices[:2])
    world = World(
        fleet,
        make_model("first", memory="300Mi"),
        make_model("second", memory="800Mi"),
        make_model("huge", memory="9Gi"),
    )
    world.wanted, world.rates = {"first": 2}, {"first": 19.0, "huge": 99.0}
    world.settle()
    world.wanted |= {"second": 1, "huge": 1}
    outcome = world.plan()
    assert [type(a) for a in outcome.actions] == [Start]
    assert "room is being made" in outcome.waiting["second"]
    outcome = world.settle()
    assert world.counts() == {"first": 2, "second": 1, "huge": 0}
    assert outcome.refusals["huge"][0].permanent
    assert outcome.shortage("huge") is None, "it is not for want of room"


def test_nobody_leaves_for_what_a_move_lets_in_though_the_fleet_is_divided_for_another(make_model: Any) -> None:
    devices = tuple(Device(f"a/gpu-{i}", "a", "virtual", 1000, labels={"kind": f"k{i}"}) for i in range(3))
    bound = make_model(
        "bound", slice={"memory": {"request": "900Mi"}, "deviceSelector": {"matchLabels": {"kind": "k2"}}}
    )
    world = World(
        Inventory((Node("a"),), devices),
        make_model("first", memory="300Mi"),
        make_model("second", memory="800Mi"),
        bound,
    )
    world.wanted, world.rates = {"bound": 2}, {"first": 19.0, "bound": 19.0}
    world.settle()
    world.wanted["first"] = 2
    world.settle()
    assert world.counts() == {"first": 2, "second": 0, "bound": 1}
    world.wanted["second"] = 1
    outcome = world.plan()
    assert outcome.division is not None, "the bound one has less than it wants"
    assert [type(a) for a in outcome.actions] == [Start], "one of the first moves"
    world.settle()
    assert world.counts() == {"first": 2, "second": 1, "bound": 1}


wants = st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 9), st.floats(0.0, 90.0)), min_size=1)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(wants, min_size=1, max_size=3),
    sizes=st.lists(st.sampled_from([200, 400, 600]), min_size=6, max_size=6),
    priorities=st.lists(st.integers(-2, 2), min_size=6, max_size=6),
)
def test_nobody_starves_all_that_is_granted_fits_and_a_plan_made_twice_does_nothing(
    steps: list[Any], sizes: list[int], priorities: list[int], make_model: Any
) -> None:
    fleet = Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 1200) for i in range(4)))
    models = [
        make_model(name, memory=f"{size}Mi", compute=0, priority=priority)
        for name, size, priority in zip("abcdef", sizes, priorities, strict=True)
    ]
    world = World(fleet, *models)
    for step in steps:
        world.wanted = {name: count for name, (count, _) in step.items()}
        world.rates = {name: rate for name, (_, rate) in step.items()}
        world.plan()
        assert world.plan().actions == (), "applied twice it changes nothing"
        world.settle()
        counts = world.counts()
        # Four devices of 1200 MiB hold one of each of six models, whatever their sizes are.
        assert all(counts[name] >= 1 for name, count in world.wanted.items() if count)
        assert all(counts[name] <= world.wanted.get(name, 0) for name in counts)
        assert not any(isinstance(a, Start | Stop) for a in world.plan().actions)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    wanted=st.lists(st.tuples(st.integers(0, 5), st.floats(0.3, 1.1), st.integers(0, 2)), min_size=2, max_size=5),
    sizes=st.lists(st.sampled_from([200, 300, 500, 700, 1500]), min_size=5, max_size=5),
    priorities=st.lists(st.integers(-1, 1), min_size=5, max_size=5),
    broken=st.sets(st.sampled_from("abcde"), max_size=1),
)
@example(wanted=[(3, 0.9, 0), (1, 0.9, 0)], sizes=[700] * 5, priorities=[0, 1, 0, 0, 0], broken={"b"})
def test_who_is_not_served_in_full_does_not_make_the_others_come_and_go(
    wanted: list[Any], sizes: list[int], priorities: list[int], broken: set[str], make_model: Any
) -> None:
    """The same is wanted for an hour, one model may never get ready and one may fit nowhere."""
    fleet = Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 1000) for i in range(3)))
    rows = list(zip("abcde", wanted, sizes, priorities, strict=False))
    world = World(fleet, *(make_model(n, memory=f"{size}Mi", compute=0, priority=p) for n, _, size, p in rows))
    world.wanted = {n: count for n, (count, _, _), _, _ in rows}
    world.rates = {n: 10.0 * count * load for n, (count, load, _), _, _ in rows}
    world.floors = {n: min(count, floor) for n, (count, _, floor), _, _ in rows}
    world.suffered = dict.fromkeys(world.models, 0.0)
    world.broken = broken
    began, left = world.now, 0
    while world.now < began + 3600.0:
        for name, count in world.counts().items():
            missing = 1.0 - count / world.wanted[name] if world.wanted[name] else 0.0
            world.suffered[name] += 20.0 / SUFFER_S * (missing - world.suffered[name])
        actions = world.plan().actions
        left += sum(isinstance(a, Drain) and a.model not in broken for a in actions) if world.now > began + 600.0 else 0
        world.let_be(20.0)
    assert left <= 6, "two take turns of ten minutes at most"
