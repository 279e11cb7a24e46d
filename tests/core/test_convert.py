"""The hall's nouns as the libraries', and back."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.wire import Hedge
from packer.inventory import Device, Distance, Placement, SliceRequest
from packer.place import place
from tangram.core import convert
from tangram.core.replica import Phase, Replica
from tangram.spec import Fleet

FLEET = Fleet.model_validate(
    {
        "metadata": {"name": "f"},
        "spec": {
            "nodes": [
                {
                    "name": "a",
                    "cpu": "2",
                    "memory": "1Gi",
                    "labels": {"rack": "1"},
                    "devices": [
                        {"name": "g", "memory": "2Gi", "reserve": "128Mi", "cores": "500m", "labels": {"fast": "yes"}}
                    ],
                }
            ]
        },
    }
)


def a_replica(name: str, phase: Phase, device: str = "a/g") -> Replica:
    placement = Placement(SliceRequest(name, "digits", 100), device, "a")
    return Replica(name, "digits", "r", placement, created_at=0.0, port=20001, slot=4, phase=phase)


def test_the_inventory_is_what_was_declared_and_what_was_found() -> None:
    found = Device("host/GPU-1", "host", "H200", 140_000, mechanisms=frozenset({"mps"}))
    inventory = convert.inventory(FLEET, [found])
    assert [(n.name, n.cpu_milli, n.memory_mib) for n in inventory.nodes] == [("a", 2000, 1024), ("host", None, None)]
    virtual, real = inventory.devices
    assert (virtual.id, virtual.node, virtual.memory_mib, virtual.reserve_mib) == ("a/g", "a", 2048, 128)
    assert virtual.mechanisms == {"virtual"}
    assert virtual.labels == {"fast": "yes", convert.CORES_LABEL: "500"}
    assert real is found
    assert convert.inventory(None).devices == ()


def test_links_that_a_fleet_declares_are_the_devices() -> None:
    device = {"memory": "1Gi", "cores": 1}
    fleet = Fleet.model_validate(
        {
            "metadata": {"name": "f"},
            "spec": {
                "nodes": [
                    {
                        "name": "a",
                        "devices": [{"name": f"g{i}", **device} for i in range(4)],
                        "links": [{"devices": ["g0", "g3"], "nvlinks": 4}, {"devices": ["g1", "g2", "g3"]}],
                    }
                ]
            },
        }
    )
    inventory = convert.inventory(fleet)
    assert [dict(d.links) for d in inventory.devices] == [
        {"a/g3": 4},
        {"a/g2": 1, "a/g3": 1},
        {"a/g1": 1, "a/g3": 1},
        {"a/g0": 4, "a/g1": 1, "a/g2": 1},
    ]
    (lies,) = place(inventory, [SliceRequest("wide-1", "wide", 100, devices=2)])
    assert isinstance(lies, Placement)
    assert set(lies.all_devices) == {"a/g0", "a/g3"}


def test_a_slice_request_asks_for_all_that_the_spec_does(make_model: Any) -> None:
    model = make_model(
        resources={"requests": {"cpu": "250m", "memory": "64Mi"}},
        slice={
            "memory": {"request": "100Mi", "limit": "200Mi"},
            "compute": 30,
            "deviceSelector": {"models": ["H200"], "matchLabels": {"rack": "1"}},
        },
    )
    assert convert.slice_request(model, "digits-7", frozenset({"a/g"})) == SliceRequest(
        id="digits-7",
        group="digits",
        memory_mib=100,
        memory_limit_mib=200,
        compute=30,
        mechanism="virtual",
        cpu_milli=250,
        host_memory_mib=64,
        device_models=frozenset({"H200"}),
        labels={"rack": "1"},
        avoid=frozenset({"a/g"}),
    )


def test_the_gateway_sees_ready_and_draining_replicas_only(make_model: Any) -> None:
    replicas = [a_replica(f"digits-{i}", phase) for i, phase in enumerate(Phase, 1)]
    entry = convert.model_entry(
        make_model(traffic={"concurrencyPerReplica": 3, "queue": {"maxMemory": "1Mi"}}),
        replicas,
        expected_ready_s=2.0,
        unavailable=None,
    )
    shown = {e.id: (e.draining, e.concurrency, e.port, e.slot) for e in entry.endpoints}
    by_phase = {r.name: r.phase for r in replicas}
    assert {by_phase[name]: draining for name, (draining, *_) in shown.items()} == {
        Phase.READY: False,
        Phase.DRAINING: True,
    }
    assert all(rest == [3, 20001, 4] for _, *rest in shown.values())
    assert (entry.starting, entry.expected_ready_s, entry.queue_max_bytes) == (1, 2.0, 1024 * 1024)


def test_an_embedded_server_knows_its_own_name_only(make_model: Any) -> None:
    def renames(**runtime: Any) -> bool:
        return convert.model_entry(
            make_model(runtime=runtime), [], expected_ready_s=None, unavailable=None
        ).rename_aliases

    assert renames(model="/m.py")
    assert not renames(kind="command", command=["serve"])


def test_hedging_is_off_unless_the_model_asks_for_it(make_model: Any) -> None:
    def hedge(traffic: dict[str, Any]) -> Hedge | None:
        return convert.model_entry(make_model(traffic=traffic), [], expected_ready_s=None, unavailable=None).hedge

    assert hedge({}) is None
    assert hedge({"hedge": {}}) == Hedge(after_s=None, percentile=95, max_percent=10)
    assert hedge({"hedge": {"afterSeconds": 0.2, "maxPercent": 5}}) == Hedge(after_s=0.2, max_percent=5)


@pytest.mark.parametrize(("fixed", "most"), [(None, 9), (0, 0), (2, 2)])
def test_the_gateway_is_told_when_a_model_is_set_to_none(fixed: int | None, most: int, make_model: Any) -> None:
    model = make_model(scaling={"maxReplicas": 9, "replicas": fixed})
    entry = convert.model_entry(model, [], expected_ready_s=None, unavailable="x")
    assert (entry.max_replicas, entry.unavailable) == (most, "x")


def test_absent_behavior_takes_the_defaults_and_given_rules_stay(make_model: Any) -> None:
    default = convert.scaling_policy(make_model())
    given = convert.scaling_policy(
        make_model(
            scaling={
                "maxReplicas": 5,
                "targetQPS": 7,
                "behavior": {
                    "scaleDown": {
                        "stabilizationWindowSeconds": 0,
                        "policies": [{"type": "Pods", "value": 1, "periodSeconds": 10}],
                    }
                },
            }
        )
    )
    assert given.behavior.up == default.behavior.up
    assert given.behavior.down.stabilization_s == 0
    assert [(p.type, p.value, p.period_s) for p in given.behavior.down.policies] == [("Pods", 1, 10.0)]
    assert (given.max_replicas, given.target_qps, given.mode) == (5, 7.0, "honour")


def test_a_model_of_several_devices_asks_for_them_whole(make_model: Any) -> None:
    model = make_model(slice={"memory": {"request": "100Mi"}, "devices": 3})
    asked = convert.slice_request(model, "digits-1")
    assert (asked.devices, asked.whole, asked.compute, asked.memory_mib) == (3, True, 100, 100)
    assert convert.slice_request(make_model(), "digits-1").whole is False


def test_what_a_replica_of_several_devices_is_guaranteed() -> None:
    devices = {
        f"a/g{i}": Device(f"a/g{i}", "a", "virtual", 1000, reserve_mib=100 * i, labels={convert.CORES_LABEL: "300"})
        for i in range(3)
    }
    wide = SliceRequest("w", "w", 50, compute=100, devices=2, whole=True)
    lies = Placement(wide, "a/g1", "a", more_devices=("a/g2",))
    assert convert.guaranteed_mib(lies, devices) == convert.limit_mib(lies, devices) == 900 + 800
    assert convert.devices_of(lies, devices) == (devices["a/g1"], devices["a/g2"])
    assert convert.cores(convert.devices_of(lies, devices), 100) == 0.6
    assert convert.in_words(lies) == "a/g1 and a/g2"
    small = Placement(SliceRequest("s", "s", 50, 80), "a/g0", "a")
    assert (convert.guaranteed_mib(small, devices), convert.limit_mib(small, devices)) == (50, 80)


def test_distances_and_health_that_a_fleet_declares_are_the_devices() -> None:
    device = {"memory": "1Gi", "cores": 1}
    devices = [{"name": f"g{i}", **device, "healthy": i != 1} for i in range(3)]
    links = [{"devices": ["g0", "g2"], "distance": "PIX"}, {"devices": ["g0", "g1", "g2"], "distance": "PHB"}]
    fleet = Fleet.model_validate(
        {"metadata": {"name": "f"}, "spec": {"nodes": [{"name": "a", "devices": devices, "links": links}]}}
    )
    zero, one, two = convert.inventory(fleet).devices
    assert zero.distances == {"a/g2": Distance.PIX, "a/g1": Distance.PHB}
    assert two.distances == {"a/g0": Distance.PIX, "a/g1": Distance.PHB}
    assert [d.healthy for d in (zero, one, two)] == [True, False, True]
    assert zero.links == {}
