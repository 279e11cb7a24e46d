"""What keeps a slice off a device, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.place import place
from packer.verify import verify, verify_refusal


def device(name: str = "a/gpu-0", memory: int = 10_000, **fields: Any) -> Device:
    return Device(name, name.split("/")[0], fields.pop("model", "A100-80"), memory, **fields)


def fleet(*devices: Device, nodes: tuple[Node, ...] = (), placements: tuple[Placement, ...] = ()) -> Inventory:
    names = dict.fromkeys(d.node for d in devices)
    return Inventory(nodes or tuple(Node(n) for n in names), devices, placements)


def held(on: Device, name: str = "held", memory: int = 1, compute: int = 0, **fields: Any) -> Placement:
    return Placement(SliceRequest(name, fields.pop("group", name), memory, compute=compute, **fields), on.id, on.node)


def refusal(inventory: Inventory, request: SliceRequest) -> NoFit:
    (result,) = place(inventory, [request])
    assert isinstance(result, NoFit)
    assert verify_refusal(inventory, result) == []
    return result


def test_a_slice_that_fills_a_device_to_the_last_mib_and_percent_fits() -> None:
    inventory = fleet(device(memory=10_000, reserve_mib=1_000), placements=())
    (result,) = place(inventory, [SliceRequest("r", "m", 9_000, compute=100)])
    assert isinstance(result, Placement)
    assert result.device == "a/gpu-0"
    assert result.node == "a"


def test_the_reserve_is_never_given_away() -> None:
    refused = refusal(fleet(device(memory=10_000, reserve_mib=1_000)), SliceRequest("r", "m", 9_001))
    assert refused.refusals[0].reason == "too-large"
    assert refused.permanent
    assert "9,001 MiB of memory is more than the 9,000 MiB of such a device" in str(refused)


def test_memory_short_names_what_is_missing_on_the_best_device() -> None:
    one, two = device("a/gpu-0", 80_000), device("a/gpu-1", 80_000)
    inventory = fleet(one, two, placements=(held(one, "x", 75_000), held(two, "y", 78_000)))
    refused = refusal(inventory, SliceRequest("r", "m", 8_000))
    (only,) = refused.refusals
    assert (only.device_class, only.devices, only.reason, only.missing_mib) == ("A100-80", 2, "memory", 3_000)
    assert only.text == (
        "2 x A100-80 of 80,000 MiB (node a): 3,000 MiB more memory needed than the 5,000 MiB free on the best of them"
    )
    assert not refused.permanent


def test_compute_is_as_hard_as_memory() -> None:
    one = device()
    refused = refusal(fleet(one, placements=(held(one, "x", 1, 80),)), SliceRequest("r", "m", 1, compute=30))
    assert (refused.refusals[0].reason, refused.refusals[0].missing_compute) == ("compute", 10)
    assert "10% more compute needed than the 20% free on it" in str(refused)


def test_memory_and_compute_short_at_once_are_both_told() -> None:
    one = device()
    refused = refusal(fleet(one, placements=(held(one, "x", 9_000, 80),)), SliceRequest("r", "m", 1_500, compute=30))
    assert (refused.refusals[0].missing_mib, refused.refusals[0].missing_compute) == (500, 10)
    assert "500 MiB more memory" in str(refused)
    assert "10% more compute" in str(refused)


def test_best_effort_compute_counts_nothing() -> None:
    one = device()
    (result,) = place(fleet(one, placements=(held(one, "x", 1, 100),)), [SliceRequest("r", "m", 1, compute=0)])
    assert isinstance(result, Placement)


@pytest.mark.parametrize(
    ("inventory", "request_", "reason", "words"),
    [
        (fleet(device()), SliceRequest("r", "m", 1, device_models=frozenset({"H100"})), "model", "asks for H100"),
        (fleet(device()), SliceRequest("r", "m", 1, labels={"pool": "x"}), "label", "labels pool=x"),
        (
            fleet(device(mechanisms=frozenset({"mps"}))),
            SliceRequest("r", "m", 1, mechanism="mig"),
            "mechanism",
            "offers mps, and the slice asks for mig",
        ),
        (fleet(device(healthy=False)), SliceRequest("r", "m", 1), "unhealthy", "unhealthy"),
        (
            fleet(device(), nodes=(Node("a", schedulable=False),)),
            SliceRequest("r", "m", 1),
            "unhealthy",
            "on a node that takes no new slices",
        ),
        (fleet(device(compute=50)), SliceRequest("r", "m", 1, compute=60), "too-large", "60% of compute is more"),
        (
            fleet(device(), nodes=(Node("a", cpu_milli=2_000),)),
            SliceRequest("r", "m", 1, cpu_milli=2_500),
            "too-large",
            "2,500m of host CPU is more than the 2,000m of the node",
        ),
        (
            fleet(device(max_clients=1), placements=(held(device()),)),
            SliceRequest("r", "m", 1),
            "clients",
            "all 1 clients taken",
        ),
        (
            fleet(device(), nodes=(Node("a", cpu_milli=2_000),), placements=(held(device(), cpu_milli=1_500),)),
            SliceRequest("r", "m", 1, cpu_milli=1_000),
            "host-cpu",
            "500m more host CPU needed than the 500m free on the node",
        ),
        (
            fleet(device(), nodes=(Node("a", memory_mib=100),), placements=(held(device(), host_memory_mib=90),)),
            SliceRequest("r", "m", 1, host_memory_mib=20),
            "host-memory",
            "10 MiB more host memory needed than the 10 MiB free on the node",
        ),
        (
            fleet(
                device(memory=81_920, mechanisms=frozenset({"mps", "mig"})),
                placements=(held(device(memory=81_920, mechanisms=frozenset({"mps", "mig"})), mechanism="mps"),),
            ),
            SliceRequest("r", "m", 1, mechanism="mig"),
            "mixed",
            "in use by mps, which cannot share a device with mig",
        ),
    ],
)
def test_each_obstacle_has_its_reason_and_words(
    inventory: Inventory, request_: SliceRequest, reason: str, words: str
) -> None:
    assert verify(inventory) == []
    refused = refusal(inventory, request_)
    assert [r.reason for r in refused.refusals] == [reason]
    assert words in str(refused)
    assert refused.permanent == (reason in ("model", "label", "mechanism", "too-large"))


def test_labels_may_be_the_devices_or_the_nodes() -> None:
    inventory = fleet(device(labels={"nvlink": "yes"}), nodes=(Node("a", labels={"pool": "x"}),))
    (result,) = place(inventory, [SliceRequest("r", "m", 1, labels={"nvlink": "yes", "pool": "x"})])
    assert isinstance(result, Placement)


def test_each_class_of_devices_has_a_refusal_and_the_nearest_comes_first() -> None:
    small, big = device("a/gpu-0", 1_000, model="T4"), device("b/gpu-0", 9_000)
    inventory = fleet(small, big, placements=(held(big, "x", 8_000),))
    refused = refusal(inventory, SliceRequest("r", "m", 2_000))
    assert [(r.device_class, r.reason) for r in refused.refusals] == [("A100-80", "memory"), ("T4", "too-large")]
    assert not refused.permanent


def test_a_class_accounts_for_each_of_its_devices() -> None:
    devices = [device(f"a/gpu-{i}") for i in range(3)]
    devices[2] = replace(devices[2], healthy=False)
    inventory = fleet(*devices, placements=(held(devices[0], "x", 9_500), held(devices[1], "y", 1, 95)))
    refused = refusal(inventory, SliceRequest("r", "m", 1_000, compute=10))
    (only,) = refused.refusals
    assert only.devices == 3
    assert "1 of them: 500 MiB more memory" in only.text
    assert "1 of them: 5% more compute" in only.text
    assert "1 of them: unhealthy" in only.text


def test_an_empty_fleet_says_so() -> None:
    assert str(refusal(Inventory((), ()), SliceRequest("r", "m", 1))) == "the fleet has no devices"


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (SliceRequest("r", "m", 0), "'r': memory_mib: 0 is out of range; guarantee at least 1 MiB"),
        (SliceRequest("r", "m", 1, compute=101), "compute: 101"),
        (SliceRequest("r", "m", 9, memory_limit_mib=8), "memory_limit_mib: 8 is out of range; give at least the guar"),
        (SliceRequest("r", "m", 9, cpu_milli=-1), "cpu_milli: -1"),
    ],
)
def test_a_request_without_sense_is_an_error_not_a_refusal(request_: SliceRequest, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        place(fleet(device()), [request_])
