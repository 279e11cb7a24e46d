"""Slices that grow for a while, of what nobody on their device is guaranteed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from packer.inventory import Device, Inventory, Node
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Desired, Observed, Plan, Resize, Start, apply
from tangram.core.replica import Phase, Replica
from tangram.spec import Model


@pytest.fixture
def one() -> Inventory:
    return Inventory((Node("a"),), (Device("a/gpu-0", "a", "virtual", 8000),))


def growing(make_model: Any, name: str = "digits", compute: int = 20, limit: int = 60, **parts: Any) -> Model:
    slice_ = {"memory": {"request": "100Mi"}, "compute": compute, "computeLimit": limit}
    made: Model = make_model(name, slice=slice_, **parts)
    return made


class World:
    def __init__(self, fleet: Inventory, *models: Model) -> None:
        self.fleet, self.models = fleet, models
        self.replicas: tuple[Replica, ...] = ()
        self.now = 0.0

    def plan(self, **wants: tuple[int, float]) -> Plan:
        """Each model's count and boost; what starts is ready at once."""
        desired = {
            m.name: Desired(m, *wants.get(m.name, (0, 1.0))[:1], boost=wants.get(m.name, (0, 1.0))[1])
            for m in self.models
        }
        self.now += 1.0
        ordinals = {m.name: int(self.now) * 100 for m in self.models}
        ledger = ledger_of(self.fleet, self.replicas)
        outcome = plan(Observed(self.replicas, next_ordinal=ordinals), desired, ledger, self.now)
        self.replicas = apply(self.replicas, outcome.actions, self.now)
        for device in self.fleet.devices:
            there = [r for r in self.replicas if r.placement.device == device.id]
            assert sum(r.placement.request.compute + r.loan for r in there) <= 100, "never more than there is"
        return outcome

    def ready(self) -> None:
        self.replicas = tuple(replace(r, phase=Phase.READY) if r.phase is Phase.STARTING else r for r in self.replicas)

    def loans(self, model: str = "digits") -> list[int]:
        return [r.loan for r in self.replicas if r.model == model]


def test_a_slice_grows_while_a_sibling_starts_and_shrinks_when_it_is_ready(one: Inventory, make_model: Any) -> None:
    world = World(one, growing(make_model))
    world.plan(digits=(1, 1.0))
    world.ready()
    outcome = world.plan(digits=(2, 2.5))
    assert [type(a) for a in outcome.actions] == [Resize, Start]
    assert world.loans() == [30, 0], "one that starts needs nothing yet"
    assert world.plan(digits=(2, 2.5)).actions == ()
    world.ready()
    world.plan(digits=(2, 1.0))
    assert world.loans() == [0, 0]


def test_it_never_grows_beyond_its_limit(one: Inventory, make_model: Any) -> None:
    world = World(one, growing(make_model, limit=35))
    world.plan(digits=(1, 1.0))
    world.ready()
    world.plan(digits=(1, 9.0))
    assert world.loans() == [15]


def test_a_new_slice_takes_back_what_was_lent_before_it_starts(one: Inventory, make_model: Any) -> None:
    world = World(one, growing(make_model, limit=100), make_model("other", memory="100Mi", compute=70))
    world.plan(digits=(1, 1.0))
    world.ready()
    world.plan(digits=(1, 5.0))
    assert world.loans() == [80]
    outcome = world.plan(digits=(1, 5.0), other=(1, 1.0))
    assert [type(a) for a in outcome.actions] == [Resize, Start]
    assert world.loans() == [10]


def test_the_higher_priority_grows_first(one: Inventory, make_model: Any) -> None:
    vital = growing(make_model, "vital", limit=70, priority=1)
    world = World(one, growing(make_model), vital)
    world.plan(digits=(1, 1.0), vital=(1, 1.0))
    world.ready()
    world.plan(digits=(1, 3.0), vital=(1, 3.5))
    assert (world.loans("vital"), world.loans("digits")) == ([50], [10])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(*[st.tuples(st.integers(0, 3), st.floats(1.0, 5.0))] * 3), max_size=6))
def test_no_sequence_of_wants_lends_what_is_guaranteed(steps: Any, one: Inventory, make_model: Any) -> None:
    models = [
        growing(make_model, n, compute=c, limit=100, priority=p)
        for n, c, p in (("a", 10, 0), ("b", 25, 0), ("c", 5, 1))
    ]
    world = World(one, *models)
    for wants in steps:
        world.plan(**dict(zip("abc", wants, strict=True)))
        world.ready()
