"""Turns of the loop on virtual time, over a node, a gateway and ports that are none; the store is a real one."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoscaler.policy import State as PolicyState
from autoscaler.policy import recommend
from autoscaler.types import Sample, Supply
from gateway.wire import EndpointCounters, ModelCounters, ModelEntry, Report
from packer.inventory import Device, Inventory, MigInstance, Node
from tangram.control import measure, present
from tangram.control.loop import ControlLoop
from tangram.control.memories import recall
from tangram.control.state import Answer, ControllerState, ModelState, fresh_policy_state
from tangram.control.store import Store, StoredMemory
from tangram.core import convert, plans
from tangram.core.demand import DemandTracker
from tangram.core.replica import Phase
from tangram.node.backend import InstancePhase, InstanceStatus, StartError, StartOrder
from tangram.node.mechanisms import GivenSlice, SliceSettings
from tangram.spec import Fleet, Model


class Machine:
    """A Backend whose processes do what the test says."""

    def __init__(self) -> None:
        self.there: dict[str, InstanceStatus] = {}
        self.refuses = ""
        self.starts: list[str] = []
        self.stops: list[str] = []
        self.cores: dict[str, float | None] = {}
        self.devices: dict[str, str] = {}
        self.tidied: list[set[str]] = []
        self.held: list[set[MigInstance]] = []

    def settings(self, given: GivenSlice) -> SliceSettings:
        return SliceSettings(cpu_cores=convert.cores(given.devices, given.compute))

    async def prepare(self, given: GivenSlice, held: Callable[[str], Collection[MigInstance]]) -> SliceSettings:
        self.held += [set(held(device.id)) for device in given.devices if given.mig]
        return self.settings(given)

    async def tidy(self, used: Callable[[], Collection[str]]) -> None:
        self.tidied.append(set(used()))

    async def start(self, order: StartOrder) -> InstanceStatus:
        if self.refuses:
            raise StartError(self.refuses)
        self.starts.append(order.instance)
        self.devices[order.instance] = order.env["TANGRAM_DEVICES"]
        pid = 1000 + len(self.starts)
        status = InstanceStatus(order.instance, order.model, pid, pid, order.port, InstancePhase.STARTING, 0.0)
        self.there[order.instance] = status
        return status

    async def stop(self, instance: str, grace_s: float) -> None:
        self.stops.append(instance)
        self.becomes(instance, InstancePhase.EXITED, exit_code=-15)

    def becomes(self, instance: str, phase: InstancePhase, **fields: Any) -> None:
        self.there[instance] = replace(self.there[instance], phase=phase, **fields)

    def all_ready(self) -> None:
        for name, status in self.there.items():
            if status.phase is InstancePhase.STARTING:
                self.becomes(name, InstancePhase.READY)

    def resize(self, instance: str, cores: float | None) -> None:
        self.cores[instance] = cores

    def forget(self, instance: str) -> None:
        self.there.pop(instance, None)

    def statuses(self) -> Mapping[str, InstanceStatus]:
        return dict(self.there)

    def log_path(self, instance: str) -> Path:
        return Path(f"/logs/{instance}.log")


class Gateway:
    def __init__(self) -> None:
        self.table: Mapping[str, ModelEntry] = {}
        self.empty: set[str] = set()

    def publish(self, table: Mapping[str, ModelEntry]) -> None:
        self.table = dict(table)

    def drained(self, replica: str) -> bool:
        return replica in self.empty


class Ports:
    def __init__(self) -> None:
        self.given: list[int] = []

    def allocate(self) -> int:
        self.given.append(next(p for p in range(20_000, 30_000) if p not in self.given))
        return self.given[-1]

    def release(self, port: int) -> None:
        self.given.remove(port)


class World:
    def __init__(self, store: Store) -> None:
        devices = tuple(Device(f"n/gpu-{i}", "n", "virtual", 1000) for i in range(2))
        self.state = ControllerState(Inventory((Node("n"),), devices), None, DemandTracker(0.0))
        self.store, self.node, self.gateway, self.ports = store, Machine(), Gateway(), Ports()
        self.loop = ControlLoop(self.state, store, self.node, self.gateway, self.ports, asyncio.Event())
        self.now = 0.0

    def declare(
        self,
        name: str = "digits",
        memory: str = "400Mi",
        runtime: Any = (),
        devices: int = 1,
        mechanism: str = "virtual",
        **scaling: Any,
    ) -> None:
        document = {
            "metadata": {"name": name},
            "spec": {
                "runtime": {"model": "/m.py", **dict(runtime)},
                "slice": {"memory": {"request": memory}, "devices": devices, "mechanism": mechanism},
                "scaling": {"minReplicas": 0, "maxReplicas": 9, **scaling},
            },
        }
        model = Model.model_validate(document)
        entry = self.state.models.get(name)
        if entry is None:
            self.state.models[name] = ModelState(model, self.now, PolicyState.initial(self.now))
        else:
            entry.model, entry.changed = model, True

    async def turn(self, seconds: float = 1.0, *, measure: bool = True) -> None:
        """A turn, and then whatever it started or stopped."""
        self.now += seconds
        self.loop.turn(self.now, self.now, measure=measure)
        for _ in range(5):
            await asyncio.sleep(0)

    def phases(self) -> dict[str, Phase]:
        return {r.name: r.phase for r in sorted(self.state.replicas.values(), key=lambda r: r.name)}

    def recorded(self) -> dict[str, Phase]:
        return {r.name: r.phase for r in self.store.replicas()}

    def endpoints(self, model: str = "digits") -> dict[str, bool]:
        return {e.id: e.draining for e in self.gateway.table[model].endpoints}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store(tmp_path / "tangram.db")
    world = World(store)
    yield world
    await world.loop.close()
    store.close()


async def test_a_replica_is_recorded_before_it_is_started_and_published_when_ready(world: World) -> None:
    world.declare(replicas=1)
    world.now += 1
    world.loop.turn(1.0, 1.0, measure=True)
    assert world.recorded() == {"digits-1": Phase.STARTING}
    assert world.node.starts == []
    await world.turn()
    assert world.node.starts == ["digits-1"]
    assert world.endpoints() == {}
    assert world.gateway.table["digits"].starting == 1
    world.node.all_ready()
    await world.turn()
    assert world.phases() == world.recorded() == {"digits-1": Phase.READY}
    assert world.endpoints() == {"digits-1": False}
    (decision,) = world.store.decisions("digits", 9)
    assert decision.actions == ("start digits-1 on n/gpu-0: 1 wanted (fixed)",)
    assert [e.reason for e in world.store.events("digits", 9)] == ["Ready"]


async def test_a_turn_that_changes_nothing_writes_nothing(world: World) -> None:
    world.declare(replicas=2)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    await world.turn()
    before = (world.store.decisions(None, 99), world.store.events(None, 99), world.recorded())
    for _ in range(5):
        await world.turn()
    assert (world.store.decisions(None, 99), world.store.events(None, 99), world.recorded()) == before
    assert world.node.starts == ["digits-1", "digits-2"]


async def test_a_surplus_replica_drains_before_its_process_is_stopped(world: World) -> None:
    world.declare(replicas=2)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    world.declare(replicas=1)
    await world.turn(measure=False)
    (leaving,) = [n for n, p in world.phases().items() if p is Phase.DRAINING]
    assert world.endpoints()[leaving] is True
    assert world.node.stops == []
    await world.turn()
    assert world.node.stops == []
    world.gateway.empty.add(leaving)
    await world.turn()
    assert world.node.stops == [leaving]
    await world.turn()
    assert leaving not in world.phases()
    assert leaving not in world.recorded()
    assert len(world.ports.given) == 1


async def test_a_crashed_replica_starts_again_on_its_own_slice_and_port(world: World) -> None:
    world.declare(replicas=1)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    before = world.state.replicas["digits-1"]
    world.node.becomes("digits-1", InstancePhase.EXITED, exit_code=-9)
    await world.turn(measure=False)
    again = world.state.replicas["digits-1"]
    assert (again.phase, again.restarts, again.port) == (Phase.STARTING, 1, before.port)
    assert again.placement == before.placement
    assert world.node.starts == ["digits-1", "digits-1"]
    assert world.endpoints() == {}
    messages = [e.message for e in world.store.events("digits", 9)]
    assert messages[0] == "process was ended by signal 9; starts again at once"


async def test_a_start_that_the_system_refuses_is_told_as_such(world: World) -> None:
    world.declare(replicas=1)
    world.node.refuses = "command 'x' is not a file"
    await world.turn()
    await world.turn(0.1, measure=False)
    (event, *_) = world.store.events("digits", 9)
    assert event.message.startswith("process did not start: command 'x' is not a file")


async def test_starts_that_pass_their_deadline_are_waited_out_and_are_no_lack_of_room(world: World) -> None:
    world.declare(replicas=1, runtime={"progressDeadlineSeconds": 5})
    await world.turn()
    await world.turn(6.0)
    entry = world.state.models["digits"]
    assert entry.latest is not None
    assert entry.latest.refused == ()
    assert "1 start in a row passed the progress deadline" in entry.latest.waiting
    assert "passed the progress deadline" in str(world.gateway.table["digits"].unavailable)
    await world.turn(2.0)
    assert [n for n, p in world.phases().items() if p is Phase.STARTING] == ["digits-2"]
    assert world.state.replicas["digits-2"].placement.device == "n/gpu-1"


async def test_what_finds_no_place_is_said_once_and_to_the_gateway(world: World) -> None:
    world.declare(replicas=1, memory="2000Mi")
    for _ in range(4):
        await world.turn()
    assert world.phases() == {}
    assert str(world.gateway.table["digits"].unavailable).startswith("no room: ")
    (decision,) = world.store.decisions("digits", 9)
    assert (decision.wanted, decision.granted) == (1, 0)
    assert decision.refused


async def test_a_changed_spec_wakes_no_model_that_idles_at_zero(world: World) -> None:
    world.declare(targetQPS=10)
    for _ in range(3):
        await world.turn()
    world.declare(targetQPS=20)
    await world.turn(measure=False)
    assert world.phases() == {}
    world.state.models["digits"].woken = True
    await world.turn(0.1, measure=False)
    assert world.phases() == {"digits-1": Phase.STARTING}


async def test_names_are_never_given_twice(world: World) -> None:
    world.declare(replicas=1)
    await world.turn()
    world.declare(replicas=0)
    await world.turn(measure=False)
    await world.turn()
    assert world.phases() == {}
    world.declare(replicas=1)
    await world.turn(measure=False)
    assert world.phases() == {"digits-2": Phase.STARTING}
    assert world.store.ordinals() == {"digits": 3}


async def test_a_deleted_model_is_drained_and_its_table_entry_goes(world: World) -> None:
    world.declare(replicas=1)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    del world.state.models["digits"]
    await world.turn()
    assert world.phases() == {"digits-1": Phase.DRAINING}
    assert "digits" not in world.gateway.table
    world.gateway.empty.add("digits-1")
    await world.turn()
    await world.turn()
    assert world.phases() == world.recorded() == {}


async def test_while_nothing_can_be_recorded_nothing_starts_but_the_gateway_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.declare(replicas=2)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    real = world.store.put_replicas

    def full(replicas: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(world.store, "put_replicas", full)
    world.node.becomes("digits-1", InstancePhase.EXITED, exit_code=1)
    await world.turn()
    await world.turn()
    assert world.endpoints() == {"digits-2": False}
    assert world.node.starts == ["digits-1", "digits-2"]
    assert world.recorded()["digits-1"] is Phase.READY
    monkeypatch.setattr(world.store, "put_replicas", real)
    await world.turn()
    assert world.node.starts[2:] == ["digits-1"]
    await world.turn()
    assert world.recorded() == world.phases() == {"digits-1": Phase.STARTING, "digits-2": Phase.READY}


async def test_a_stop_ends_every_replica_and_starts_none(world: World) -> None:
    world.declare(replicas=2)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    world.loop.begin_stop(world.now)
    await world.turn()
    assert sorted(world.node.stops) == ["digits-1", "digits-2"]
    await world.turn()
    assert world.loop.emptied.is_set()
    assert world.recorded() == {}
    await world.turn()
    assert len(world.node.starts) == 2


async def test_growth_past_the_slices_limit_is_told_once(world: World) -> None:
    world.declare(replicas=1)
    await world.turn()
    world.node.all_ready()
    world.node.becomes("digits-1", InstancePhase.READY, memory_mib=500.0)
    for _ in range(3):
        await world.turn()
    assert [e.reason for e in world.store.events("digits", 9)].count("OverMemoryLimit") == 1


async def test_demand_that_is_unknown_shrinks_nothing(world: World) -> None:
    world.declare(minReplicas=1, targetQPS=1)
    world.state.demand.report(Report(worker=0, epoch="e", uptime_s=0.5, applied=(0, 0)), 0.5)
    await world.turn()
    world.node.all_ready()
    world.declare(minReplicas=2, targetQPS=1)
    await world.turn()
    world.node.all_ready()
    world.declare(minReplicas=1, targetQPS=1)
    for _ in range(600):
        await world.turn(measure=True)
    assert list(world.phases().values()) == [Phase.READY, Phase.READY]


async def test_what_the_gateway_ejects_is_told_and_shown(world: World) -> None:
    world.declare(minReplicas=2)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    ill, well = sorted(world.state.replicas)

    def reported(ejected: str) -> None:
        endpoints = (EndpointCounters(id=ill, ejected=ejected), EndpointCounters(id=well))
        counters = ModelCounters(name="digits", endpoints=endpoints)
        report = Report(worker=0, epoch="e", uptime_s=world.now, applied=(1, 1), models=(counters,))
        world.state.demand.report(report, world.now)

    def shown() -> tuple[list[str], str]:
        model = present.model_view(world.state, world.state.models["digits"], world.now)
        healthy = next(c for c in model.conditions if c.type == "Healthy")
        return [v.ejected for v in present.replica_views(world.state, "digits")], healthy.reason

    reported("errors")
    await world.turn()
    await world.turn()
    assert shown() == (["errors", ""], "ReplicasEjected")
    reported("")
    await world.turn()
    assert shown() == (["", ""], "NoTrouble")
    told = [(e.reason, e.replica) for e in world.store.events("digits", 9) if e.reason != "Ready"]
    assert told == [("Readmitted", ill), ("Ejected", ill)], "newest first, each once"
    reported("slow")
    await world.turn()
    world.node.becomes(ill, InstancePhase.UNREADY)
    reported("")
    await world.turn()
    told = [e.reason for e in world.store.events("digits", 9) if e.replica == ill]
    assert told[:2] == ["Unready", "Ejected"], "out of the table is not back in service"


#: Unix time of 1970-01-05, a Monday.
MONDAY = 4 * 86_400.0


async def test_a_schedule_holds_while_its_window_is_open_and_is_told(world: World) -> None:
    world.now = MONDAY + 9 * 3600
    window = {"start": "0 8 * * mon-fri", "end": "0 18 * * mon-fri", "minReplicas": 2, "timeZone": "UTC"}
    world.declare(schedules=[window], behavior={"scaleDown": {"stabilizationWindowSeconds": 0}})
    await world.turn()
    assert len(world.phases()) == 2
    entry = world.state.models["digits"]
    assert entry.recommendation is not None
    assert entry.recommendation.signal == "schedule"
    assert (
        present.model_view(world.state, entry, world.now).window == "open from '0 8 * * mon-fri' to '0 18 * * mon-fri'"
    )
    world.node.all_ready()
    world.now = MONDAY + 18 * 3600
    for second in range(200):
        report = Report(worker=0, epoch="e", uptime_s=second + 0.5, applied=(0, 0))
        world.state.demand.report(report, world.now + 0.5)
        world.gateway.empty = set(world.phases())
        await world.turn()
    assert world.phases() == {}


async def test_a_window_without_replicas_is_told_to_the_gateway(world: World) -> None:
    world.now = MONDAY + 3600
    world.declare(schedules=[{"start": "0 0 * * *", "end": "0 6 * * *", "maxReplicas": 0}])
    world.state.models["digits"].woken = True
    await world.turn()
    assert world.phases() == {}
    assert world.gateway.table["digits"].max_replicas == 0
    world.now = MONDAY + 6 * 3600
    await world.turn()
    assert world.gateway.table["digits"].max_replicas == 9


async def test_advice_is_recorded_and_not_acted_on(world: World) -> None:
    world.declare(minReplicas=1, advisory=True, targetQPS=1)
    await world.turn()
    world.node.all_ready()
    for second in range(1, 30):
        model = ModelCounters(name="digits", arrivals=5 * second, completions=5 * second)
        report = Report(worker=0, epoch="e", uptime_s=float(second), applied=(0, 0), models=(model,))
        world.state.demand.report(report, world.now)
        await world.turn()
    assert world.phases() == {"digits-1": Phase.READY}
    entry = world.state.models["digits"]
    view = present.model_view(world.state, entry, world.now)
    assert (view.desired, view.advised) == (1, 5)
    newest, *_ = world.store.decisions("digits", 9)
    assert (newest.wanted, newest.desired, newest.granted, newest.actions) == (5, 1, 1, ())
    world.declare(minReplicas=1, advisory=True, replicas=3)
    await world.turn()
    assert len(world.phases()) == 3, "a count set by hand is no advice"


async def test_a_whole_fleet_may_be_advised(world: World) -> None:
    world.state.advise = True
    world.declare(minReplicas=0)
    world.state.models["digits"].woken = True
    await world.turn()
    assert world.phases() == {}
    assert world.state.models["digits"].recommendation is not None
    assert world.state.models["digits"].recommendation.replicas == 1
    assert "tangram set digits --replicas 1" in str(world.gateway.table["digits"].unavailable)


class Asking:
    """Clients of many models, as the gateway would report them: each replica serves ten requests a second."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.totals: dict[str, list[float]] = {}

    def second(self, rates: Mapping[str, float]) -> None:
        self.world.now += 0.5
        for name, rate in rates.items():
            arrived, answered, flying, waited = self.totals.setdefault(name, [0.0] * 4)
            ready = self.world.state.count(name, Phase.READY)
            arrived += rate
            served = min(arrived - answered, 10.0 * ready)
            self.totals[name] = [
                arrived,
                answered + served,
                flying + served * 0.1,
                waited + arrived - answered - served,
            ]
        models = tuple(
            ModelCounters(name=n, arrivals=int(a), completions=int(c), in_flight_s=f, queued_s=q)
            for n, (a, c, f, q) in self.totals.items()
        )
        report = Report(worker=0, epoch="e", uptime_s=self.world.now, applied=(0, 0), models=models)
        self.world.state.demand.report(report, self.world.now)
        self.world.now -= 0.5


async def test_ten_models_share_a_fleet_that_holds_fewer_than_they_want(world: World) -> None:
    names = [f"m{i}" for i in range(10)]
    for i, name in enumerate(names):
        world.declare(name, memory="50Mi", targetQPS=10)
        world.state.models[name].model = world.state.models[name].model.model_copy(
            update={"spec": world.state.models[name].model.spec.model_copy(update={"priority": i % 2})}
        )
    asking, least = Asking(world), dict.fromkeys(names, 99)
    changes: list[int] = []
    for second in range(120):
        # Each is quiet but for its hour, and three hours fall together; more is wanted than the forty that fit.
        rates = {n: 85.0 if (second // 40 + i) % 10 < 5 else 15.0 for i, n in enumerate(names)}
        asking.second(rates)
        world.node.all_ready()
        before = {r.name for r in world.state.replicas.values() if r.live}
        world.gateway.empty = set(world.phases())
        await world.turn()
        after = {r.name for r in world.state.replicas.values() if r.live}
        changes.append(len(before ^ after))
        assert world.state.oversold == ()
        assert len(world.phases()) <= 40
        if second >= 20:
            for name in names:
                live = sum(r.live for r in world.state.of_model(name))
                least[name] = min(least[name], live)
    assert min(least.values()) >= 1, "none is starved"
    assert sum(changes[-40:]) <= 60, "replicas are not handed to and fro"
    short = [
        n
        for n in names
        if "Shared" in [c.reason for c in present.model_view(world.state, world.state.models[n], 0.0).conditions]
    ]
    assert short
    entry = world.state.models[short[0]]
    told = present.explain_view(world.state, entry, (), world.now, world.now)
    assert "the fleet cannot hold what all models want" in told.summary
    assert told.latest is not None
    assert told.latest.shared.startswith("granted ")


async def test_a_model_whose_count_cannot_be_worked_out_keeps_it_and_the_others_go_on(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def overflows(policy: Any, *rest: Any) -> Any:
        if policy.max_replicas == 7:
            raise OverflowError("its rate is beyond all measure")
        return recommend(policy, *rest)

    world.declare("ill", minReplicas=2, maxReplicas=7)
    world.declare("well", minReplicas=1)
    await world.turn()
    world.node.all_ready()
    monkeypatch.setattr("tangram.control.loop.recommend", overflows)
    world.declare("well", minReplicas=2)
    for _ in range(3):
        await world.turn()
    assert sorted(world.phases()) == ["ill-1", "ill-2", "well-1", "well-2"]
    assert caplog.text.count("ill keeps its count") == 1


async def test_a_model_for_which_room_is_being_made_is_not_said_to_fail(world: World) -> None:
    world.declare(replicas=1)
    await world.turn()
    entry = world.state.models["digits"]
    assert entry.latest is not None
    for failed, reason, status in ((0, "RoomIsBeingMade", "True"), (1, "ProgressDeadlineExceeded", "False")):
        entry.attempts = plans.Attempts(failed=failed)
        entry.latest = replace(entry.latest, waiting="room is being made: other-1 leave")
        told = {c.type: c for c in present.model_view(world.state, entry, world.now).conditions}["Progressing"]
        assert (told.status, told.reason) == (status, reason)


async def test_a_slice_grows_at_once_under_a_step_and_gives_back_when_siblings_are_ready(world: World) -> None:
    labels = {"tangram.dev/cores": "1000"}
    inventory = world.state.inventory
    world.state.inventory = replace(inventory, devices=tuple(replace(d, labels=labels) for d in inventory.devices))
    document = {
        "metadata": {"name": "digits"},
        "spec": {
            "runtime": {"model": "/m.py"},
            "slice": {"memory": {"request": "100Mi"}, "compute": 20, "computeLimit": 80},
            "traffic": {"concurrencyPerReplica": 1},
            "scaling": {"minReplicas": 1, "maxReplicas": 8},
        },
    }
    world.state.models["digits"] = ModelState(Model.model_validate(document), 0.0, PolicyState.initial(0.0))
    asking = Asking(world)
    await world.turn()
    world.node.all_ready()
    for _ in range(60):
        asking.second({"digits": 5.0})
        await world.turn()
    assert world.node.cores == {}
    for _ in range(5):
        asking.second({"digits": 25.0})
        await world.turn()
    grown = world.state.replicas["digits-1"].loan
    assert grown > 0
    assert world.node.cores["digits-1"] == pytest.approx((20 + grown) / 100)
    assert world.recorded()["digits-1"] is Phase.READY
    assert len(world.phases()) > 1
    assert measure.supply_of(world.state, world.state.models["digits"]).boost == pytest.approx(1 + grown / 20)
    world.node.all_ready()
    for _ in range(90):
        asking.second({"digits": 25.0})
        world.node.all_ready()
        await world.turn()
    assert world.state.replicas["digits-1"].loan == 0
    assert world.node.cores["digits-1"] == pytest.approx(0.2)


async def test_what_was_learned_survives_a_restart_of_the_controller(world: World) -> None:
    world.declare(minReplicas=1)
    asking = Asking(world)
    await world.turn()
    world.state.models["digits"].start_times_s.append(12.0)
    for _ in range(100):
        world.node.all_ready()
        asking.second({"digits": 5.0})
        await world.turn()
    entry = world.state.models["digits"]
    assert entry.recommendation is not None and entry.recommendation.capacity is not None
    stored = world.store.memories()["digits"]
    assert world.now - stored.at <= 60.0

    again = ModelState(entry.model, 0.0, PolicyState.initial(0.0))
    recall(again, stored, stored.at + 20.0, 5.0)
    assert list(again.start_times_s) == [12.0]
    advice, _ = recommend(convert.scaling_policy(again.model), Supply(1, 0, 0), Sample(0.0, 0), again.policy_state, 5.0)
    assert advice.capacity == pytest.approx(entry.recommendation.capacity, rel=0.05)

    changed = ModelState(entry.model, 0.0, PolicyState.initial(0.0))
    recall(changed, replace(stored, revision="00000000"), stored.at + 20.0, 5.0)
    assert not changed.start_times_s
    assert changed.policy_state.history.buckets > 0, "who asks does not change with the revision"


@pytest.mark.parametrize("record", ["", "[]", "{}", "null", '{"policy": 1, "starts": []}', "[" * 9999])
async def test_garbage_on_record_is_told_and_forgotten(
    world: World, record: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.declare()
    entry = world.state.models["digits"]
    recall(entry, StoredMemory(entry.model.revision, 0.0, record), 10.0, 5.0)
    assert "what was learned of digits is not used" in caplog.text
    assert entry.policy_state == fresh_policy_state("digits", 5.0)


async def test_what_prometheus_says_decides_and_its_silence_holds(world: World) -> None:
    terms = {"url": "http://127.0.0.1:9", "periodSeconds": 10}
    device = {"name": "gpu-0", "memory": "1Gi", "cores": 1}
    spec = {"nodes": [{"name": "n", "devices": [device]}], "prometheus": terms}
    world.state.fleet = Fleet.model_validate({"metadata": {"name": "test"}, "spec": spec})
    metric = {"type": "prometheus", "name": "waiting", "query": "sum(waiting)", "target": 4}
    down = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    world.declare(minReplicas=1, metrics=[metric], behavior=down)
    asking = Asking(world)

    async def seconds(count: int, value: float | None) -> str:
        for _ in range(count):
            if value is not None:
                world.state.answers["sum(waiting)"] = Answer(value, world.now)
            asking.second({"digits": 1.0})
            world.node.all_ready()
            world.gateway.empty = set(world.phases())
            await world.turn()
        entry = world.state.models["digits"]
        return present.explain_view(world.state, entry, (), world.now, world.now).model_dump_json()

    assert "waiting at 11 at 4 per replica want 3" in await seconds(15, 11.0)
    assert sum(r.live for r in world.state.replicas.values()) == 3
    told = await seconds(60, None)
    assert "Prometheus gives no answer for" in told
    assert sum(r.live for r in world.state.replicas.values()) == 3, "silence shrinks nothing"
    await seconds(30, 1.0)
    assert sum(r.live for r in world.state.replicas.values()) == 1


async def test_a_replica_of_two_devices_is_recorded_started_and_shown_with_both(world: World) -> None:
    world.declare("wide", replicas=1, devices=2)
    await world.turn()
    assert world.node.devices == {"wide-1": "n/gpu-0,n/gpu-1"}
    (recorded,) = world.store.replicas()
    assert recorded.placement.all_devices == ("n/gpu-0", "n/gpu-1")
    world.node.all_ready()
    world.node.becomes("wide-1", InstancePhase.READY, memory_mib=300.0)
    await world.turn()
    (replica,) = present.replica_views(world.state)
    assert (replica.device, replica.devices) == ("n/gpu-0", ("n/gpu-0", "n/gpu-1"))
    assert (replica.memory_request, replica.memory_limit, replica.compute) == (2000, 2000, 100)
    views = present.device_views(world.state)
    assert [(d.memory_requested, d.memory_used, d.compute_requested, d.clients) for d in views] == [
        (1000, 150.0, 100, 1)
    ] * 2
    (decision,) = world.store.decisions("wide", 5)
    assert decision.actions[0].startswith("start wide-1 on n/gpu-0 and n/gpu-1: ")
    assert decision.placements[0].devices == ("n/gpu-0", "n/gpu-1")
    # Of what both are guaranteed.
    entry = world.state.models["wide"]
    assert measure.measure_model(world.state, entry, world.now).device_memory == (15.0,)


async def test_it_may_use_the_memory_of_both_devices_before_it_is_told_of(world: World) -> None:
    world.declare("wide", memory="10Mi", replicas=1, devices=2)
    await world.turn()
    world.node.becomes("wide-1", InstancePhase.READY, memory_mib=1999.0)
    await world.turn()
    assert "OverMemoryLimit" not in {e.reason for e in world.store.events("wide", 9)}
    world.node.becomes("wide-1", InstancePhase.READY, memory_mib=2001.0)
    await world.turn()
    (event,) = [e for e in world.store.events("wide", 9) if e.reason == "OverMemoryLimit"]
    assert event.message == "uses 2001 MiB, more than the limit of 2000 MiB of its slice"


async def test_whoever_lies_on_a_device_that_fails_goes_elsewhere(world: World) -> None:
    world.declare(replicas=1)
    await world.turn()
    world.node.all_ready()
    await world.turn()
    broken = world.state.replicas["digits-1"].placement.device
    there = world.state.inventory
    world.state.inventory = replace(there, devices=tuple(replace(d, healthy=d.id != broken) for d in there.devices))
    await world.turn()
    assert world.node.starts == ["digits-1", "digits-2"]
    assert world.endpoints() == {"digits-1": False}
    world.node.all_ready()
    await world.turn()
    await world.turn()
    assert world.endpoints() == {"digits-1": True, "digits-2": False}
    world.gateway.empty.add("digits-1")
    await world.turn()
    await world.turn()
    assert world.phases() == {"digits-2": Phase.READY}
    assert world.state.replicas["digits-2"].placement.device != broken


async def test_what_runs_beside_gpus_is_tidied_at_first_and_when_the_last_slice_by_mps_has_gone(world: World) -> None:
    there = world.state.inventory
    world.state.inventory = replace(
        there, devices=tuple(replace(d, mechanisms=frozenset({"mps"})) for d in there.devices)
    )
    world.declare(replicas=2, mechanism="mps")
    await world.turn()
    assert world.node.tidied == [{"n/gpu-0", "n/gpu-1"}]
    world.node.all_ready()
    await world.turn()
    await world.turn()
    assert len(world.node.tidied) == 1
    world.declare(replicas=0, mechanism="mps")
    world.gateway.empty |= {"digits-1", "digits-2"}
    for _ in range(4):
        await world.turn()
    assert world.phases() == {}
    assert world.node.tidied[-1] == set()


async def test_gpu_instances_of_all_on_record_are_kept_when_one_is_made(world: World) -> None:
    gpu = Device("GPU-1", "n", "NVIDIA H100-80", 81_559, mechanisms=frozenset({"mig"}))
    world.state.inventory = replace(world.state.inventory, devices=(gpu,))
    world.declare(replicas=2, mechanism="mig", memory="4Gi")
    await world.turn()
    one, two = (r.placement.mig[0] for r in world.state.replicas.values())
    assert one.profile == two.profile == "1g.10gb" and one.start != two.start
    assert world.node.held == [{one, two}, {one, two}]
