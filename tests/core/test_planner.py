"""The planner on declared fleets and timelines: what is there, what is wanted, what is done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.inventory import Device, Inventory, Node
from tangram.core import draft, packing
from tangram.core.planner import ledger_of, plan
from tangram.core.plans import Desired, Drain, Observed, Start, Stop, Undrain
from tangram.core.replica import Phase
from tangram.spec import Model

from .world import World, kinds


def test_new_replicas_spread_over_devices(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=4)
    assert world.phases() == {f"digits-{i}": "STARTING" for i in (1, 2, 3, 4)}
    assert len({r.placement.device for r in world.replicas}) == 4


def test_a_plan_applied_twice_changes_nothing(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    assert world.step(digits=3)
    assert world.step() == []
    world.ready()
    assert world.step() == []


def test_starting_replicas_count_as_capacity_to_come(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    assert kinds(world.step(1, digits=3)) == ["Start digits-3"]


def test_what_does_not_fit_is_refused_with_the_reason_and_nothing_pends(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=11)
    assert len(world.replicas) == 8
    refusals = world.last.refusals["digits"]
    assert len(refusals) == 3
    assert "memory" in str(refusals[0])


def test_higher_priority_is_placed_first(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model("alpha"), make_model("beta", priority=10))
    world.step(alpha=8, beta=6)
    placed = [r.model for r in world.replicas]
    assert placed.count("beta") == 6
    assert placed.count("alpha") == 2


def test_starting_replicas_are_removed_before_ready_ones_and_ready_ones_drain(
    fleet: Inventory, make_model: Any
) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    world.ready()
    world.step(1, digits=4)
    assert sorted(kinds(world.step(1, digits=1)))[1:] == ["Stop digits-3", "Stop digits-4"]
    assert [type(a) for a in world.last.actions].count(Drain) == 1
    assert sum(r.phase is Phase.READY for r in world.replicas) == 1


def test_a_draining_replica_is_stopped_only_when_nothing_is_in_flight(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model(traffic={"drainSeconds": 20}))
    world.step(digits=1)
    world.ready()
    assert kinds(world.step(1, digits=0)) == ["Drain digits-1"]
    assert world.step(5) == []
    world.drained.add("digits-1")
    assert kinds(world.step(1)) == ["Stop digits-1"]
    world.gone()
    assert world.replicas == ()


def test_a_drain_is_bounded(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model(traffic={"drainSeconds": 20}))
    world.step(digits=1)
    world.ready()
    world.step(1, digits=0)
    assert world.step(19) == []
    [stop] = world.step(1)
    assert isinstance(stop, Stop)
    assert "still in flight" in stop.why


def test_a_drain_is_undone_before_anything_new_is_started(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    world.ready()
    world.step(1, digits=1)
    actions = world.step(1, digits=3)
    assert [type(a) for a in actions] == [Undrain, Start]
    assert sum(r.phase is Phase.READY for r in world.replicas) == 2


def test_a_slice_is_free_only_when_its_process_is_gone(make_model: Any) -> None:
    one = Inventory((Node("a"),), (Device("a/gpu-0", "a", "virtual", 1000),))
    world = World(one, make_model("old", memory="900Mi"), make_model("new", memory="900Mi"))
    world.step(old=1)
    world.ready()
    world.step(1, old=0, new=1)
    world.drained.add("old-1")
    world.step(1)
    assert world["old-1"].phase is Phase.STOPPING
    assert "new" in world.last.refusals
    world.gone()
    assert kinds(world.step(1)) == ["Start new-1"]


def test_a_crashed_replica_is_started_again_at_once_then_with_back_off(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=1)
    world.ready()
    device = world["digits-1"].placement.device
    world.see("digits-1", alive=False, exit_code=-9)
    [again] = world.step()
    assert isinstance(again, Start)
    assert again.again
    assert again.replica.restarts == 1
    assert again.replica.placement.device == device
    world.now += 0.5
    world.see("digits-1", pid=2, started_at=world.now)
    world.see("digits-1", alive=False, exit_code=1, pid=2, started_at=world.now)
    assert world["digits-1"].phase is Phase.CRASHED
    assert world.step(0.9) == []
    assert kinds(world.step(0.2)) == ["Start digits-1"]


def test_a_crashed_replica_keeps_its_place_in_the_count(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    world.ready()
    for _ in range(3):
        world.see("digits-1", alive=False, exit_code=1)
        world.step()
        world.see("digits-1", pid=2)
    assert len(world.replicas) == 2


def test_a_start_past_its_deadline_is_ended_and_tried_elsewhere_with_back_off(
    fleet: Inventory, make_model: Any
) -> None:
    world = World(fleet, make_model(runtime={"progressDeadlineSeconds": 30}))
    world.step(digits=1)
    first = world["digits-1"].placement.device
    world.see("digits-1", message="connection refused")
    assert world.step(29) == []
    [stop] = world.step(1)
    assert isinstance(stop, Stop)
    assert "connection refused" in stop.why
    assert "passed the progress deadline" in world.last.waiting["digits"]
    world.gone()
    assert kinds(world.step(1)) == ["Start digits-2"]
    assert world["digits-2"].placement.device != first
    world.step(30)
    world.gone()
    assert world.step(5) == [], "the second failure in a row waits longer"
    assert kinds(world.step(6)) == ["Start digits-3"]


def test_a_crash_loop_ends_at_the_progress_deadline(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model(runtime={"progressDeadlineSeconds": 30}))
    world.step(digits=1)
    for _ in range(4):
        world.see("digits-1", pid=7)
        world.see("digits-1", alive=False, exit_code=1, started_at=world.now)
        world.step(8)
    assert world["digits-1"].phase is Phase.STOPPING


def test_back_off_ends_with_the_first_replica_ready_after_the_failure(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model(runtime={"progressDeadlineSeconds": 30}))
    world.step(digits=1)
    world.ready()
    world.step(1, digits=2)
    world.step(30)
    assert world.attempts["digits"].failed == 1, "the sibling that was ready before proves nothing"
    world.gone()
    world.step(2)
    world.now += 1
    world.ready()
    world.step()
    assert world.attempts["digits"].failed == 0


def test_a_deleted_model_drains(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    world.ready("digits-1")
    del world.models["digits"]
    assert sorted(kinds(world.step(1))) == ["Drain digits-1", "Stop digits-2"]


class TestRoll:
    def rolled(self, world: World) -> list[dict[str, str]]:
        """Run a roll to its end, one event a step; returns the phases after each."""
        seen = []
        for _ in range(40):
            world.ready()
            world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
            world.gone()
            world.step(1)
            seen.append(world.phases())
            if all(r.revision == m.revision for r in world.replicas for m in [world.models[r.model]]) and all(
                r.phase is Phase.READY for r in world.replicas
            ):
                return seen
        raise AssertionError(f"the roll does not end: {seen[-1]}")

    def changed(self, model: Model) -> Model:
        return model.model_copy(
            update={
                "spec": model.spec.model_copy(
                    update={"runtime": model.spec.runtime.model_copy(update={"model": "/models/new.py"})}
                )
            }
        )

    def test_make_before_break_never_has_fewer_ready_than_wanted(self, fleet: Inventory, make_model: Any) -> None:
        world = World(fleet, make_model())
        world.step(digits=3)
        world.ready()
        world.models["digits"] = self.changed(world.models["digits"])
        for phases in self.rolled(world):
            assert list(phases.values()).count("READY") >= 3
            live = sum(p in ("READY", "STARTING") for p in phases.values())
            assert live <= 4
        assert len(world.replicas) == 3

    def test_a_full_fleet_rolls_too_and_others_carry_the_load(self, fleet: Inventory, make_model: Any) -> None:
        world = World(fleet, make_model())
        world.step(digits=8)
        world.ready()
        world.models["digits"] = self.changed(world.models["digits"])
        for phases in self.rolled(world):
            assert list(phases.values()).count("READY") >= 7
        assert len(world.replicas) == 8

    def test_the_only_replica_on_a_full_fleet_rolls(self, make_model: Any) -> None:
        one = Inventory((Node("a"),), (Device("a/gpu-0", "a", "virtual", 1000),))
        world = World(one, make_model(memory="900Mi"))
        world.step(digits=1)
        world.ready()
        world.models["digits"] = self.changed(world.models["digits"])
        self.rolled(world)
        assert len(world.replicas) == 1

    def test_a_revision_that_never_gets_ready_leaves_the_old_one_serving(
        self, fleet: Inventory, make_model: Any
    ) -> None:
        world = World(fleet, make_model(runtime={"progressDeadlineSeconds": 30}))
        world.step(digits=2)
        world.ready()
        world.models["digits"] = self.changed(world.models["digits"])
        for _ in range(100):
            world.gone()
            world.step(5)
            assert sum(r.phase is Phase.READY for r in world.replicas) == 2

    def test_scaling_down_during_a_roll_removes_old_ones(self, fleet: Inventory, make_model: Any) -> None:
        world = World(fleet, make_model())
        world.step(digits=4)
        world.ready()
        world.models["digits"] = self.changed(world.models["digits"])
        world.step(1)
        world.ready()
        actions = world.step(1, digits=2)
        assert {a.replica for a in actions if isinstance(a, Drain)} <= {f"digits-{i}" for i in (1, 2, 3, 4)}
        self.rolled(world)
        assert len(world.replicas) == 2


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), st.sampled_from(["alpha", "beta"]), st.integers(0, 12)),
        st.tuples(st.just("ready"), st.integers(0, 30)),
        st.tuples(st.just("crash"), st.integers(0, 30)),
        st.tuples(st.just("drained"), st.integers(0, 30)),
        st.tuples(st.just("gone"), st.just(0)),
        st.tuples(st.just("roll"), st.sampled_from(["alpha", "beta"])),
        st.tuples(st.just("time"), st.integers(1, 200)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(events=EVENTS)
@pytest.mark.filterwarnings("ignore")
def test_no_sequence_of_events_oversells_or_drops_a_ready_replica_undrained(events: list[Any]) -> None:
    nodes = (Node("a"), Node("b"))
    fleet = Inventory(nodes, tuple(Device(f"{n}/gpu-{i}", n, "virtual", 1000) for n in "ab" for i in range(2)))
    world = World(fleet, _model("alpha", 300), _model("beta", 450))
    for event in events:
        match event:
            case ("count", name, count):
                world.counts[name] = count
            case ("ready", index) if world.replicas:
                replica = world.replicas[index % len(world.replicas)]
                if replica.live:
                    world.see(replica.name, ready=True, pid=3)
            case ("crash", index) if world.replicas:
                world.see(world.replicas[index % len(world.replicas)].name, alive=False, exit_code=1)
            case ("drained", index) if world.replicas:
                replica = world.replicas[index % len(world.replicas)]
                if replica.phase is Phase.DRAINING:
                    world.drained.add(replica.name)
            case ("gone", _):
                world.gone()
            case ("roll", name):
                model = world.models[name]
                runtime = model.spec.runtime.model_copy(update={"model": f"/models/{len(world.replicas)}.py"})
                world.models[name] = model.model_copy(
                    update={"spec": model.spec.model_copy(update={"runtime": runtime})}
                )
            case ("time", seconds):
                world.now += seconds
        before = {r.name: r for r in world.replicas}
        actions = world.step(1)
        for action in actions:
            if isinstance(action, Stop) and before[action.replica].phase is Phase.READY:
                raise AssertionError(f"{action.replica} was ready and is stopped without a drain")
        assert world.step() == [], "a plan applied twice changes nothing"
        assert len({r.name for r in world.replicas}) == len(world.replicas)


def _model(name: str, memory: int) -> Model:
    return Model.model_validate(
        {
            "apiVersion": "tangram.dev/v1alpha1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "runtime": {"model": "/m.py"},
                "slice": {"memory": {"request": f"{memory}Mi"}, "compute": 20},
                "scaling": {"maxReplicas": 20},
            },
        }
    )


def test_a_model_that_no_device_could_hold_is_known(fleet: Inventory, make_model: Any) -> None:
    assert packing.unplaceable(make_model(memory="999Mi"), fleet) is None
    refusal = packing.unplaceable(make_model(memory="1001Mi"), fleet)
    assert refusal is not None
    assert refusal.permanent


def test_only_a_ready_replica_of_the_wanted_revision_is_undrained(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=1)
    world.ready()
    world.step(1, digits=0)
    world.replicas = tuple(replace(r, revision="0ld") for r in world.replicas)
    assert [type(a) for a in world.step(1, digits=1)] == [Start]


class TestMoves:
    """Two devices of 1000 MiB; two small replicas of 400, one on each; then a model of 900 comes."""

    def world(self, make_model: Any) -> World:
        fleet = Inventory((Node("a"),), tuple(Device(f"a/gpu-{i}", "a", "virtual", 1000) for i in range(2)))
        world = World(fleet, make_model("small"), make_model("large", memory="900Mi"))
        world.step(small=2)
        world.ready()
        world.step(draft.RESIDENCY_S)
        return world

    def settle(self, world: World) -> list[str]:
        """Run until nothing more is done; returns all actions."""
        done: list[str] = []
        for _ in range(12):
            world.ready()
            world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
            world.gone()
            done += kinds(world.step(1))
        return done

    def test_what_fits_nowhere_is_let_in_by_a_move(self, make_model: Any) -> None:
        world = self.world(make_model)
        [move] = world.step(0, large=1)
        assert isinstance(move, Start)
        assert move.replica.model == "small"
        assert move.replica.replaces in ("small-1", "small-2")
        assert "so that large fits" in move.why
        assert "room is being made" in world.last.waiting["large"]
        assert self.settle(world) == [
            f"Drain {move.replica.replaces}",
            f"Stop {move.replica.replaces}",
            "Start large-1",
        ]
        assert {r.model: r.placement.device for r in world.replicas}["large"] == world["large-1"].placement.device
        assert len(world.replicas) == 3

    def test_a_moving_model_never_has_fewer_ready_than_wanted(self, make_model: Any) -> None:
        world = self.world(make_model)
        world.step(0, large=1)
        for _ in range(8):
            assert sum(r.model == "small" and r.phase is Phase.READY for r in world.replicas) >= 2
            world.ready()
            world.drained |= {r.name for r in world.replicas if r.phase is Phase.DRAINING}
            world.gone()
            world.step(1)

    def test_replicas_just_started_are_left_alone_at_first(self, make_model: Any) -> None:
        world = self.world(make_model)
        world.replicas = tuple(replace(r, since=world.now) for r in world.replicas)
        assert world.step(1, large=1) == []
        assert "may move once ready for 20 s" in world.last.waiting["large"], "so nobody gives up a replica for it"
        assert world.step(draft.RESIDENCY_S) != []

    def test_a_move_is_off_when_its_model_wants_fewer(self, make_model: Any) -> None:
        world = self.world(make_model)
        [move] = world.step(0, large=1)
        actions = kinds(world.step(1, small=1))
        assert f"Stop {move.replica.name}" in actions
        assert world.step() == []
        self.settle(world)
        assert sorted(r.model for r in world.replicas) == ["large", "small"]

    def test_a_sibling_that_never_gets_ready_leaves_the_mover_serving(self, make_model: Any) -> None:
        world = self.world(make_model)
        [move] = world.step(0, large=1)
        world.step(200)
        assert world[move.replica.name].phase is Phase.STOPPING
        assert world[move.replica.replaces].phase is Phase.READY

    def test_the_search_is_not_repeated_while_nothing_changes(self, make_model: Any) -> None:
        world = self.world(make_model)
        world.models["huge"] = make_model("huge", memory="1000Mi", compute=90)
        world.step(0, large=1)
        self.settle(world)
        world.step(draft.RESIDENCY_S, huge=1)
        searched = world.attempts["huge"].searched
        assert searched
        world.step(1)
        assert "huge" not in world.last.attempts

    def test_moves_an_hour_are_capped(self, make_model: Any) -> None:
        world = self.world(make_model)
        observed = Observed(world.replicas, next_ordinal=world.ordinals, moves_lately=draft.MOVES_AN_HOUR)
        desired = {n: Desired(m, {"small": 2, "large": 1}[n]) for n, m in world.models.items()}
        capped = plan(observed, desired, ledger_of(world.fleet, world.replicas), world.now)
        assert capped.actions == ()
        assert "large" in capped.refusals


def test_a_device_that_is_ill_for_a_while_could_still_hold_a_model(make_model: Any, fleet: Inventory) -> None:
    ill = replace(fleet, devices=tuple(replace(d, healthy=False) for d in fleet.devices))
    assert packing.unplaceable(make_model(memory="900Mi"), ill) is None
    assert packing.unplaceable(make_model(memory="1001Mi"), ill) is not None


# --- canary ---


def change(world: World, make_model: Any) -> Model:
    """Another revision comes in, of which one replica is wanted as canary."""
    world.stable, world.canary = world.models["digits"], 1
    world.models["digits"] = changed = make_model(runtime={"model": "/models/other.py"})
    return changed


def of(world: World, revision: str, *phases: Phase) -> list[str]:
    return sorted(r.name for r in world.replicas if r.revision == revision and (not phases or r.phase in phases))


def test_a_canary_is_added_and_all_others_stay(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=3)
    world.ready()
    new = change(world, make_model)
    assert kinds(world.step()) == ["Start digits-4"]
    world.ready()
    assert world.step(100) == []
    assert of(world, new.revision, Phase.READY) == ["digits-4"]
    assert len(of(world, world.stable.revision, Phase.READY)) == 3


def test_what_is_needed_more_meanwhile_is_of_the_former_revision(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    world.ready()
    new = change(world, make_model)
    assert kinds(world.step(digits=4)) == ["Start digits-3", "Start digits-4", "Start digits-5"]
    assert of(world, new.revision) == ["digits-3"]
    world.ready()
    world.step(digits=2)
    assert len(of(world, world.stable.revision, Phase.READY)) == 2
    assert of(world, new.revision, Phase.READY) == ["digits-3"]


def test_on_a_full_fleet_one_that_others_can_stand_in_for_makes_room(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=8)
    world.ready()
    new = change(world, make_model)
    (drain,) = world.step()
    assert isinstance(drain, Drain) and "canary" in drain.why
    assert world.step(1) == []
    world.drained.add(drain.replica)
    world.step(1)
    world.gone()
    assert kinds(world.step(1)) == ["Start digits-9"]
    world.ready()
    world.step(1)
    assert of(world, new.revision, Phase.READY) == ["digits-9"]
    assert len(of(world, world.stable.revision, Phase.READY)) == 7
    assert world.step(1) == []


def test_the_only_replica_does_not_make_room_for_a_canary(make_model: Any) -> None:
    world = World(Inventory((Node("a"),), (Device("a/gpu-0", "a", "virtual", 500),)), make_model())
    world.step(digits=1)
    world.ready()
    change(world, make_model)
    assert world.step() == []
    assert world.last.refusals


def test_after_the_canary_the_rest_is_rolled(fleet: Inventory, make_model: Any) -> None:
    world = World(fleet, make_model())
    world.step(digits=2)
    world.ready()
    new = change(world, make_model)
    world.step()
    world.ready()
    world.canary = 0
    for _ in range(6):
        world.step(1)
        world.drained.update(r.name for r in world.replicas if r.phase is Phase.DRAINING)
        world.gone()
        world.ready()
    assert len(of(world, new.revision, Phase.READY)) == 2 == len(world.replicas)
