"""Models whose replicas span several whole devices, through the planner."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoscaler.quota import Claim
from packer.inventory import Device, Distance, Inventory, Node
from packer.verify import verify
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Desired, Drain, Observed, Start, Stop
from tangram.core.replica import Phase
from tangram.spec import Model

from .world import World, kinds


def machine(count: int, pairs: bool = True) -> Inventory:
    """One node; neighbours are on one PCIe switch."""

    def near(i: int) -> dict[str, Distance]:
        return {f"n/gpu-{i ^ 1}": Distance.PIX} if pairs else {}

    return Inventory(
        (Node("n"),), tuple(Device(f"n/gpu-{i}", "n", "virtual", 1000, distances=near(i)) for i in range(count))
    )


@pytest.fixture
def wide(make_model: Any) -> Any:
    def make(name: str = "wide", devices: int = 2, memory: str = "400Mi", **parts: Any) -> Model:
        made: Model = make_model(name, slice={"memory": {"request": memory}, "devices": devices}, **parts)
        return made

    return make


def fails(world: World, *devices: str, healthy: bool = False) -> None:
    world.fleet = replace(
        world.fleet, devices=tuple(replace(d, healthy=healthy) if d.id in devices else d for d in world.fleet.devices)
    )


def test_each_replica_has_devices_of_its_own_that_are_near(wide: Any) -> None:
    world = World(machine(4), wide())
    starts = world.step(wide=2)
    assert {r.placement.all_devices for r in world.replicas} == {("n/gpu-0", "n/gpu-1"), ("n/gpu-2", "n/gpu-3")}
    assert all("2 devices behind one PCIe switch (PIX)" in a.replica.placement.why for a in starts)
    assert world.step() == []


def test_what_does_not_fit_is_refused_in_words(wide: Any) -> None:
    world = World(machine(3), wide())
    world.step(wide=3)
    assert len(world.replicas) == 1
    assert len(world.last.refusals["wide"]) == 2
    assert "at most 1 of a node have room" in str(world.last.refusals["wide"][0])


def test_a_device_that_fails_costs_a_replica_its_place_and_no_request(wide: Any) -> None:
    world = World(machine(4), wide())
    world.step(wide=1)
    world.ready()
    fails(world, world.replicas[0].placement.all_devices[1])
    broken = world.replicas[0].placement.all_devices
    (start,) = world.step(1)
    assert isinstance(start, Start) and start.replica.replaces == "wide-1"
    assert start.why == f"takes over from wide-1: {broken[1]} is unhealthy"
    assert not {*start.replica.placement.all_devices} & {*broken}
    assert world.step(1) == [], "it serves on until its sibling is ready"
    world.ready("wide-2")
    assert kinds(world.step(1)) == ["Drain wide-1"]
    world.drained.add("wide-1")
    assert kinds(world.step(1)) == ["Stop wide-1"]
    world.gone()
    assert world.step(1) == []
    assert world.phases() == {"wide-2": "READY"}


def test_it_serves_on_where_there_is_no_room_for_its_sibling(wide: Any) -> None:
    world = World(machine(2), wide())
    world.step(wide=1)
    world.ready()
    fails(world, "n/gpu-1")
    assert world.step(1) == []
    assert "wide-1 has nowhere to go, and n/gpu-1 is unhealthy" in world.last.waiting["wide"]
    fails(world, "n/gpu-1", healthy=True)
    assert world.step(1) == []
    assert world.last.waiting == {}


@pytest.mark.parametrize("crashed", [False, True])
def test_who_is_not_ready_on_a_device_that_failed_starts_elsewhere_at_once(wide: Any, crashed: bool) -> None:
    world = World(machine(4), wide())
    world.step(wide=1)
    broken = {*world["wide-1"].placement.all_devices}
    if crashed:
        world.ready()
        world.see("wide-1", alive=False, exit_code=-9)
    fails(world, min(broken))
    assert kinds(world.step(1)) == ["Stop wide-1", "Start wide-2"]
    assert not broken & {*world["wide-2"].placement.all_devices}


def test_fewer_wanted_takes_those_on_failed_devices_first(wide: Any) -> None:
    world = World(machine(6), wide())
    world.step(wide=3)
    world.ready()
    fails(world, world["wide-1"].placement.device)
    assert [a.replica for a in world.step(1, wide=2) if isinstance(a, Drain)] == ["wide-1"]


def test_small_slices_leave_devices_that_fail_too(make_model: Any) -> None:
    world = World(machine(2), make_model())
    world.step(digits=2)
    world.ready()
    fails(world, "n/gpu-0")
    (start,) = world.step(1)
    assert start.replica.placement.device == "n/gpu-1"


def test_a_start_that_passed_its_deadline_is_tried_on_other_devices(wide: Any) -> None:
    world = World(machine(4), wide(runtime={"progressDeadlineSeconds": 30}))
    world.step(wide=1)
    first = {*world["wide-1"].placement.all_devices}
    assert kinds(world.step(31)) == ["Stop wide-1"]
    world.gone()
    assert kinds(world.step(2)) == ["Start wide-2"]
    assert not first & {*world["wide-2"].placement.all_devices}


def test_a_crash_is_started_again_on_the_same_devices(wide: Any) -> None:
    world = World(machine(4), wide())
    world.step(wide=1)
    world.ready()
    devices = world["wide-1"].placement.all_devices
    world.see("wide-1", alive=False, exit_code=-9)
    (again,) = world.step()
    assert again.again and again.replica.placement.all_devices == devices


@pytest.mark.parametrize(("count", "surges"), [(6, True), (4, False)])
def test_a_revision_is_rolled_in(wide: Any, count: int, surges: bool) -> None:
    """Make before break where there is room for one more; on a full machine the others carry the load."""
    world = World(machine(count), wide())
    world.step(wide=2)
    world.ready()
    world.models["wide"] = wide(memory="500Mi")
    least = 2
    for _ in range(12):
        world.step(5)
        least = min(least, sum(r.phase is Phase.READY for r in world.replicas))
        world.ready()
        world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
        world.gone()
    assert {r.revision for r in world.replicas} == {world.models["wide"].revision}
    assert world.phases() == {r.name: "READY" for r in world.replicas} and len(world.replicas) == 2
    assert least == (2 if surges else 1)


def test_a_roll_waits_for_moves_that_make_room_for_one_more(wide: Any, make_model: Any) -> None:
    """The only replica serves until its successor does."""
    world = World(machine(5, pairs=False), wide(), make_model(memory="400Mi", compute=0))
    world.step(wide=1)
    world.step(digits=2)
    world.ready()
    assert len({d for r in world.replicas for d in r.placement.all_devices}) == 4
    world.models["wide"] = wide(memory="500Mi")
    world.now += 30
    for _ in range(10):
        world.step(1)
        world.ready()
        assert any(r.model == "wide" and r.phase is Phase.READY for r in world.replicas)
        world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
        world.gone()
    assert [r.revision for r in world.replicas if r.model == "wide"] == [world.models["wide"].revision]


@pytest.mark.parametrize("canary", [0, 1])
def test_nobody_leaves_for_a_revision_that_gets_no_place_so(wide: Any, canary: int) -> None:
    """What is left by a replica on a device that is not well is no room for its successor."""
    world = World(machine(4), wide())
    world.step(wide=2)
    world.ready()
    world.stable = world.models["wide"] if canary else None
    world.canary = canary
    world.models["wide"] = wide(memory="500Mi")
    fails(world, *(d.id for d in world.fleet.devices))
    for _ in range(5):
        assert world.step(5) == []
    assert "unhealthy" in str(world.last.refusals["wide"][0])
    fails(world, *world["wide-1"].placement.all_devices, healthy=True)
    assert kinds(world.step(5)) == ["Drain wide-1"]


def test_nobody_leaves_for_a_revision_that_all_of_them_are_in_no_way_of(make_model: Any, wide: Any) -> None:
    """It wants whole devices where another model lies: its own former replica would go for nothing."""
    world = World(machine(2), make_model("other", memory="900Mi", priority=1), make_model("wide", memory="50Mi"))
    world.step(other=1, wide=1)
    world.ready()
    world.models["wide"] = wide()
    for _ in range(3):
        assert world.step(30) == []
    assert kinds(world.step(30, other=0)) == ["Drain other-1"]
    world.drained.add("other-1")
    world.step(1)
    world.gone()
    assert kinds(world.step(1)) == ["Drain wide-1"]


def test_small_slices_move_out_of_the_way(wide: Any, make_model: Any) -> None:
    world = World(machine(3, pairs=False), make_model(memory="400Mi", compute=0), wide())
    world.step(digits=2)
    world.ready()
    assert len({r.placement.device for r in world.replicas}) == 2
    world.step(30, wide=1)
    assert "room is being made" in world.last.waiting["wide"]
    for _ in range(6):
        world.ready()
        world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
        world.step(1)
        world.gone()
    world.ready()
    assert sum(r.model == "wide" and r.phase is Phase.READY for r in world.replicas) == 1
    assert sum(r.model == "digits" and r.phase is Phase.READY for r in world.replicas) == 2


def test_who_has_moved_does_not_come_back_to_its_former_place(wide: Any, make_model: Any) -> None:
    """More are wanted while it drains: it would be moved again in the next turn, and so to and fro."""
    world = World(machine(3, pairs=False), make_model(memory="400Mi", compute=0), wide())
    world.step(digits=2)
    world.ready()
    (start,) = world.step(30, wide=1)
    mover = start.replica.replaces
    world.ready()
    assert kinds(world.step(1)) == [f"Drain {mover}"]
    for _ in range(3):
        assert not any(a.replica == mover for a in world.step(1, digits=4) if not isinstance(a, Start))


@pytest.mark.parametrize("comes", ["a new device", "one that was out of service"])
def test_moves_are_looked_for_again_when_the_fleet_has_changed(wide: Any, make_model: Any, comes: str) -> None:
    """Nobody has moved since the search in vain, and yet there is somewhere to go now."""
    world = World(machine(3, pairs=False), make_model(memory="400Mi", compute=0), wide())
    if comes == "a new device":
        world.fleet = machine(2, pairs=False)
    else:
        fails(world, "n/gpu-2")
    world.step(digits=2)
    world.ready()
    world.step(30, wide=1)
    assert world.step(30) == [], "two devices cannot both be emptied"
    world.fleet = machine(3, pairs=False)
    assert [a.replica.replaces[:-1] for a in world.step(1)] == ["digits-"]


def test_a_full_fleet_is_divided_by_what_replicas_take(wide: Any, make_model: Any) -> None:
    """One replica of four devices against forty small slices: neither is left with nothing."""
    fleet = machine(8)
    models = [wide(devices=4), make_model("small", memory="100Mi")]
    claims = {"wide": Claim("wide", 0, 15.0, 10.0), "small": Claim("small", 0, 190.0, 10.0)}
    desired = {m.name: Desired(m, 40 if m.name == "small" else 2, claim=claims[m.name]) for m in models}
    outcome = plan(Observed(()), desired, ledger_of(fleet, ()), 0.0)
    assert outcome.division is not None
    granted = {n: s.granted for n, s in outcome.division.shares.items()}
    assert granted == {"wide": 1, "small": 20}
    placements = [a.replica.placement for a in outcome.actions if isinstance(a, Start)]
    assert verify(replace(fleet, placements=tuple(placements))) == []


def test_more_devices_than_a_node_has_takes_nothing_from_others(wide: Any, make_model: Any) -> None:
    world = World(machine(2), make_model(), wide(devices=3))
    world.step(digits=10)
    world.ready()
    assert world.step(1, wide=1) == []
    assert "the slice needs 3 devices of one node, and no such node has more than 2" in str(
        world.last.refusals["wide"][0]
    )


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(("wide", "small", "break", "heal", "ready", "crash")), st.integers(0, 5))))
def test_whatever_happens_nothing_is_oversold(wide: Any, make_model: Any, story: list[tuple[str, int]]) -> None:
    """`World.step` verifies the fleet after each plan; at the end all is well and what fits is there."""
    world = World(machine(6), wide(), make_model("small", memory="300Mi", compute=30))
    for what, number in story:
        device = f"n/gpu-{number}"
        match what:
            case "wide" | "small":
                world.counts[what] = number
            case "break":
                fails(world, device)
            case "heal":
                fails(world, device, healthy=True)
            case "ready":
                world.ready()
            case "crash" if world.replicas:
                world.see(world.replicas[number % len(world.replicas)].name, alive=False, exit_code=1)
        world.step(1)
        world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
        world.gone()
    fails(world, *(d.id for d in world.fleet.devices), healthy=True)
    world.counts.update(wide=2, small=2)
    for _ in range(30):
        world.step(30)
        world.ready()
        world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
        world.gone()
    ready = [r.model for r in world.replicas if r.phase is Phase.READY]
    assert sorted(ready) == ["small", "small", "wide", "wide"]
    assert not any(isinstance(a, Stop) for a in world.step(1))
