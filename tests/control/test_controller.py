"""What the controller takes and refuses, and that it takes all of it or nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packer.inventory import Device, Placement, SliceRequest
from tangram.control.controller import Controller
from tangram.control.facade import NotFound, NotRecorded
from tangram.control.state import ControllerState
from tangram.control.store import Store
from tangram.control.tenancy import Tenancy
from tangram.control.views import ScaleRequest
from tangram.core import convert
from tangram.core.demand import DemandTracker
from tangram.core.replica import Phase, Replica
from tangram.spec import SpecError, parse_documents


class Around:
    """Backend, wire and loop as far as the controller uses them."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.workers: dict[int, Any] = {}
        self.nudges = 0

    def nudge(self) -> None:
        self.nudges += 1

    def forget(self, instance: str) -> None:
        pass

    def log_path(self, instance: str) -> Path:
        return self.logs / f"{instance}.log"


def a_fleet(*devices: str, memory: str = "1Gi", **node: Any) -> dict[str, Any]:
    there = [{"name": name, "memory": memory, "cores": 1} for name in devices]
    return {
        "apiVersion": "tangram.dev/v1alpha1",
        "kind": "Fleet",
        "metadata": {"name": "f"},
        "spec": {"nodes": [{"name": "n", "devices": there, **node}]},
    }


def a_model(name: str = "digits", memory: str = "100Mi", **parts: Any) -> dict[str, Any]:
    return {
        "apiVersion": "tangram.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"runtime": {"model": "/m.py"}, "slice": {"memory": {"request": memory}}, **parts},
    }


@pytest.fixture
async def around(tmp_path: Path) -> Around:
    return Around(tmp_path)


@pytest.fixture
async def controller(around: Any, tmp_path: Path) -> AsyncIterator[Controller]:
    store = Store(tmp_path / "tangram.db")
    state = ControllerState(convert.inventory(None), None, DemandTracker(asyncio.get_running_loop().time()))
    tenancy = Tenancy(store, lambda _: None, require_key=False)
    yield Controller(state, store, around, around, around, tenancy, term=1, gateway="http://127.0.0.1:8080")
    store.close()


def names(controller: Controller) -> list[str]:
    return [m.name for m in controller.models()]


def stored(controller: Controller) -> list[str]:
    return sorted(controller._store.models())


async def changes(controller: Controller, *documents: dict[str, Any], dry_run: bool = False) -> list[str]:
    return [a.change for a in (await controller.apply(documents, dry_run=dry_run)).applied]


async def test_it_says_what_was_created_configured_and_unchanged(controller: Controller, around: Around) -> None:
    assert await changes(controller, a_fleet("g"), a_model()) == ["created", "created"]
    assert await changes(controller, a_fleet("g"), a_model(), a_model("b")) == ["unchanged", "unchanged", "created"]
    assert await changes(controller, a_model(priority=3)) == ["configured"]
    assert names(controller) == stored(controller) == ["b", "digits"]
    assert controller.model("digits").priority == 3
    assert around.nudges == 3


async def test_a_dry_run_says_the_same_and_changes_nothing(controller: Controller, around: Around) -> None:
    assert await changes(controller, a_fleet("g"), a_model(), dry_run=True) == ["created", "created"]
    assert names(controller) == stored(controller) == []
    assert around.nudges == 0


async def test_only_what_changed_is_looked_at_before_its_time(controller: Controller) -> None:
    await changes(controller, a_fleet("g"), a_model(), a_model("b"))
    for entry in controller._state.models.values():
        entry.changed = entry.woken = False
    await changes(controller, a_model(priority=1), a_model("b"))
    assert {n: (e.changed, e.woken) for n, e in controller._state.models.items()} == {
        "digits": (True, False),
        "b": (False, False),
    }


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (a_model("big", memory="2Gi"), "spec.slice.memory.request"),
        (a_model("big", resources={"requests": {"cpu": 4}}), "spec.resources.requests"),
        (
            a_model("big", slice={"memory": {"request": 1}, "deviceSelector": {"models": ["H200"]}}),
            "spec.slice.deviceSelector.models",
        ),
    ],
)
async def test_what_no_device_could_ever_hold_is_refused_with_its_field(
    controller: Controller, model: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecError, match=rf"^Model big: {field}: no device of the fleet could ever hold it"):
        await controller.apply([a_fleet("g", cpu=2), a_model("fits"), model])
    assert names(controller) == stored(controller) == []


def aliased(name: str, *aliases: str) -> dict[str, Any]:
    return a_model(name, traffic={"aliases": list(aliases)})


@pytest.mark.parametrize(
    ("there", "comes", "told"),
    [
        (a_model("a"), aliased("b", "a"), "Model b: spec.traffic.aliases: 'a' is the name of Model a"),
        (aliased("a", "x/y"), aliased("b", "x/y"), "Model b: spec.traffic.aliases: 'x/y' is an alias of Model a too"),
        (aliased("a", "b"), a_model("b"), "Model b: metadata.name: 'b' is an alias of Model a"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
async def test_no_name_stands_for_two_models(
    controller: Controller, there: dict[str, Any], comes: dict[str, Any], told: str, together: bool
) -> None:
    await controller.apply([a_fleet("g")])
    if together:
        both = told if "metadata.name" not in told else "Model a: spec.traffic.aliases: 'b' is the name of Model b"
        with pytest.raises(SpecError, match=f"^{both}"):
            await controller.apply([there, comes])
        return
    await controller.apply([there])
    with pytest.raises(SpecError, match=f"^{told}"):
        await controller.apply([comes])
    assert names(controller) == ["a"]


async def test_an_alias_may_move_from_one_model_to_another(controller: Controller) -> None:
    await controller.apply([a_fleet("g"), aliased("a", "x", "a"), a_model("b")])
    await controller.apply([a_model("a"), aliased("b", "x")])
    await controller.apply([aliased("b", "x")])


async def test_without_any_device_nothing_can_be_declared(controller: Controller) -> None:
    with pytest.raises(SpecError, match="Fleet: is missing"):
        await controller.apply([a_model()])
    with pytest.raises(SpecError, match="documents: is empty"):
        await controller.apply([])


async def test_a_device_in_use_cannot_be_taken_away_nor_made_too_small(controller: Controller) -> None:
    await changes(controller, a_fleet("g", "h"), a_model())
    placement = Placement(SliceRequest("digits-1", "digits", 100), "n/g", "n")
    replica = Replica("digits-1", "digits", "r", placement, created_at=0.0, phase=Phase.READY)
    controller._state.replicas["digits-1"] = replica
    assert await changes(controller, a_fleet("g")) == ["configured"]
    for refused in (a_fleet("h"), a_fleet("g", memory="99Mi")):
        with pytest.raises(SpecError, match="in use, so scale down first"):
            await controller.apply([refused, a_model(memory="10Mi")])
    assert [d.id for d in controller.devices()] == ["n/g"]


@pytest.mark.parametrize("edited", [a_fleet("h"), a_fleet("g", "h", memory="150Mi")])
async def test_what_a_replica_had_that_ended_with_the_machine_does_not_keep_the_fleet_as_it_was(
    controller: Controller, edited: dict[str, Any]
) -> None:
    """After a power cut and an edit of the file: who still runs counts, who does not is placed anew."""
    await changes(controller, a_fleet("g", "h"), a_model())
    for name, device in (("digits-1", "g"), ("digits-2", "g"), ("digits-3", "h")):
        placement = Placement(SliceRequest(name, "digits", 100, labels={}), f"n/{device}", "n")
        replica = Replica(name, "digits", "r", placement, created_at=0.0, phase=Phase.READY)
        controller._state.replicas[name] = replica
    controller._store.put_replicas(controller._state.replicas.values())
    documents = parse_documents([edited, a_model(memory="50Mi")])
    with pytest.raises(SpecError, match="in use"):
        controller.take(documents, ended={"digits-2"} if len(edited["spec"]["nodes"][0]["devices"]) < 2 else set())
    assert set(controller._state.replicas) == {"digits-1", "digits-2", "digits-3"}
    controller.take(parse_documents([a_model(priority=1)]), ended={"digits-1", "digits-2"})
    assert len(controller._state.replicas) == 3, "all is there for them to start again in their places"
    controller.take(documents, ended={"digits-1", "digits-2"})
    assert set(controller._state.replicas) == {r.name for r in controller._store.replicas()} == {"digits-3"}


async def test_a_fleet_must_hold_the_models_that_are_there(controller: Controller) -> None:
    await changes(controller, a_fleet("g"), a_model(memory="900Mi"))
    with pytest.raises(SpecError, match=r"^Model digits: spec\.slice\.memory\.request"):
        await controller.apply([a_fleet("g", memory="500Mi")])
    assert controller.devices()[0].memory_total == 1024


async def test_scale_changes_what_is_given_and_auto_ends_a_fixed_count(controller: Controller) -> None:
    await changes(controller, a_fleet("g"), a_model(scaling={"maxReplicas": 4, "targetQPS": 5}))
    view = await controller.scale("digits", ScaleRequest(replicas=3))
    assert (view.fixed_replicas, view.max_replicas, view.target_qps) == (3, 4, 5)
    view = await controller.scale("digits", ScaleRequest(replicas="auto", target_qps=9))
    assert (view.fixed_replicas, view.target_qps) == (None, 9)
    with pytest.raises(SpecError, match="replicas 9 is greater than maxReplicas 4"):
        await controller.scale("digits", ScaleRequest(replicas=9))
    with pytest.raises(NotFound, match="there are: digits"):
        await controller.scale("other", ScaleRequest(replicas=1))


async def test_delete_forgets_the_model_and_keeps_its_story(controller: Controller) -> None:
    await changes(controller, a_fleet("g"), a_model())
    controller._store.put_ordinal("digits", 2)
    await controller.delete("digits")
    assert names(controller) == stored(controller) == []
    assert controller.decisions("digits") == []
    for unknown in (controller.delete("digits"), controller.scale("digits", ScaleRequest(replicas=1))):
        with pytest.raises(NotFound, match="there are: none"):
            await unknown
    with pytest.raises(NotFound):
        controller.events("never-heard-of")


async def test_a_change_that_cannot_be_recorded_changes_nothing(
    controller: Controller, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    await changes(controller, a_fleet("g"), a_model())

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(controller._store, "put_model", full)
    monkeypatch.setattr(controller._store, "delete_model", full)
    for change in (
        controller.apply([a_fleet("g", "h"), a_model("b")]),
        controller.scale("digits", ScaleRequest(replicas=1)),
        controller.delete("digits"),
    ):
        with pytest.raises(NotRecorded, match="database or disk is full; nothing was changed"):
            await change
    assert names(controller) == stored(controller) == ["digits"]
    assert controller.model("digits").fixed_replicas is None
    assert [d.id for d in controller.devices()] == ["n/g"]
    assert around.nudges == 1


async def test_logs_are_those_of_replicas_that_are_or_were(controller: Controller, tmp_path: Path) -> None:
    (tmp_path / "digits-1.log").write_text("x")
    assert controller.log_path("digits-1") == tmp_path / "digits-1.log"
    (tmp_path.parent / "secret.log").write_text("x")
    for name in ("digits-2", "../secret", ".hidden", ""):
        with pytest.raises(NotFound):
            controller.log_path(name)


async def test_more_devices_than_any_node_has_are_refused_by_the_field(controller: Controller) -> None:
    wide = a_model("wide")
    wide["spec"]["slice"]["devices"] = 3
    with pytest.raises(SpecError) as refused:
        await controller.apply([a_fleet("g", "h"), wide])
    assert str(refused.value) == (
        "Model wide: spec.slice.devices: no device of the fleet could ever hold it: 2 x virtual of 1,024 MiB (node n): "
        "the slice needs 3 devices of one node, and no such node has more than 2"
    )
    wide["spec"]["slice"] = {"devices": 2, "memory": {"request": "2Gi"}}
    with pytest.raises(SpecError, match=r"^Model wide: spec.slice.memory.request: no device .* 2,048 MiB of memory"):
        await controller.apply([a_fleet("g", "h"), wide])
    assert names(controller) == []


async def test_gpus_that_are_not_there_any_more_are_unhealthy_devices(controller: Controller, around: Around) -> None:
    gpus = tuple(Device(f"GPU-{i}", "host", "H200", 1000, mechanisms=frozenset({"timeslice"})) for i in range(2))
    await controller.apply([a_fleet("g"), a_model()])
    nudges = around.nudges
    controller.rediscovered((gpus[0], replace(gpus[1], healthy=False)))
    assert around.nudges > nudges
    assert {d.id: d.healthy for d in controller.devices()} == {"n/g": True, "GPU-0": True, "GPU-1": False}
    await controller.apply([a_fleet("g", "h")])
    assert {d.id: d.healthy for d in controller.devices()}["GPU-1"] is False
