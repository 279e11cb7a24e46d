"""Where slices go, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.place import place, room
from packer.verify import verify


def fleet(shape: dict[str, list[int]], **fields: Any) -> Inventory:
    """{"a": [8000, 8000]} is a node a with two devices of 8000 MiB."""
    devices = tuple(
        Device(f"{node}/gpu-{i}", node, "A100", memory, **fields)
        for node, sizes in shape.items()
        for i, memory in enumerate(sizes)
    )
    return Inventory(tuple(Node(n) for n in shape), devices)


def replicas(group: str, count: int, memory: int, compute: int = 0, **fields: Any) -> list[SliceRequest]:
    return [SliceRequest(f"{group}-{i}", group, memory, compute=compute, **fields) for i in range(count)]


def placed(inventory: Inventory, requests: list[SliceRequest]) -> tuple[list[Placement], Inventory]:
    results = place(inventory, requests)
    found = [r for r in results if isinstance(r, Placement)]
    assert len(found) == len(requests), [str(r) for r in results if isinstance(r, NoFit)]
    after = Inventory(inventory.nodes, inventory.devices, inventory.placements + tuple(found))
    assert verify(after, [p.request.id for p in found]) == []
    return found, after


def test_results_come_in_the_order_of_the_requests() -> None:
    requests = [*replicas("small", 2, 10), *replicas("big", 1, 7_000)]
    found, _ = placed(fleet({"a": [8_000]}), requests)
    assert [p.request for p in found] == requests


def test_replicas_of_a_model_spread_over_nodes_then_devices() -> None:
    found, _ = placed(fleet({"a": [8_000, 8_000], "b": [8_000, 8_000]}), replicas("m", 4, 100, 10))
    assert Counter(p.device for p in found) == {"a/gpu-0": 1, "a/gpu-1": 1, "b/gpu-0": 1, "b/gpu-1": 1}
    assert {p.node for p in found[:2]} == {"a", "b"}


def test_replicas_share_a_device_only_where_no_other_has_room() -> None:
    found, _ = placed(fleet({"a": [8_000, 8_000]}), replicas("m", 3, 100))
    assert Counter(p.device for p in found).most_common(1)[0][1] == 2


def test_different_models_pack_tightly_and_leave_a_device_whole() -> None:
    _, after = placed(fleet({"a": [8_000, 8_000]}), [*replicas("x", 1, 1_000, 30), *replicas("y", 1, 1_000, 30)])
    assert len({p.device for p in after.placements}) == 1
    found, _ = placed(after, replicas("whole", 1, 8_000, 100))
    assert found[0].device not in {p.device for p in after.placements}


def test_best_fit_takes_the_smallest_device_that_will_do() -> None:
    found, _ = placed(fleet({"a": [80_000], "b": [24_000], "c": [40_000]}), replicas("m", 1, 20_000))
    assert found[0].device == "b/gpu-0"


def test_compute_leads_over_memory() -> None:
    inventory = fleet({"a": [10_000, 10_000]})
    inventory = Inventory(
        inventory.nodes,
        inventory.devices,
        (
            Placement(SliceRequest("x", "x", 1_000, compute=60), "a/gpu-0", "a"),
            Placement(SliceRequest("y", "y", 6_000, compute=10), "a/gpu-1", "a"),
        ),
    )
    found, _ = placed(inventory, replicas("m", 1, 1_000, 40))
    assert found[0].device == "a/gpu-0"


def test_a_batch_is_placed_against_one_evolving_inventory() -> None:
    results = place(fleet({"a": [1_000]}), replicas("m", 3, 400))
    assert [type(r) for r in results] == [Placement, Placement, NoFit]


def test_the_larger_of_a_batch_go_first() -> None:
    requests = [*replicas("small", 4, 2_000), *replicas("big", 1, 8_000)]
    results = place(fleet({"a": [8_000, 8_000]}), requests)
    assert all(isinstance(r, Placement) for r in results)


def test_avoided_devices_are_taken_only_when_nothing_else_fits() -> None:
    inventory = fleet({"a": [1_000, 1_000]})
    found, after = placed(inventory, replicas("m", 1, 600, avoid=frozenset({"a/gpu-0"})))
    assert found[0].device == "a/gpu-1"
    (second,) = place(after, [SliceRequest("n-0", "n", 600, avoid=frozenset({"a/gpu-0"}))])
    assert isinstance(second, Placement)
    assert second.device == "a/gpu-0"
    assert "a start there failed lately" in second.why


def test_a_placement_says_why_and_what_else_was_weighed() -> None:
    _, after = placed(fleet({"a": [8_000], "b": [8_000], "c": [8_000]}), replicas("digits", 2, 500, 20))
    (result,) = place(after, [SliceRequest("digits-9", "digits", 500, compute=20)])
    assert isinstance(result, Placement)
    assert "best of 3 devices with room" in result.why
    assert "leaves 7,500 MiB and 80% compute free" in result.why
    assert len(result.alternatives) == 2
    assert all("holds 1 replica of digits already" in a.why for a in result.alternatives)
    assert all(a.score < result.score for a in result.alternatives)


def test_an_instance_is_not_placed_twice() -> None:
    _, after = placed(fleet({"a": [8_000]}), replicas("m", 1, 100))
    with pytest.raises(ValueError, match=r"'m-0' is placed already, on a/gpu-0; release it first"):
        place(after, replicas("m", 1, 100))
    with pytest.raises(ValueError, match="placed already"):
        place(fleet({"a": [8_000]}), replicas("m", 1, 100) * 2)


def test_a_device_on_a_node_that_is_not_listed_is_an_error() -> None:
    with pytest.raises(ValueError, match="node: 'gone' is not in the inventory"):
        place(Inventory((), (Device("x", "gone", "A100", 100),)), [])


def test_slices_of_a_device_that_vanished_do_not_break_placement() -> None:
    inventory = fleet({"a": [8_000]})
    lost = Placement(SliceRequest("lost", "m", 100), "a/gpu-7", "a")
    (result,) = place(Inventory(inventory.nodes, inventory.devices, (lost,)), replicas("m", 1, 100))
    assert isinstance(result, Placement)


def test_an_oversold_device_takes_nothing_more() -> None:
    inventory = fleet({"a": [1_000]})
    over = Placement(SliceRequest("over", "m", 2_000), "a/gpu-0", "a")
    (result,) = place(Inventory(inventory.nodes, inventory.devices, (over,)), replicas("m", 1, 1))
    assert isinstance(result, NoFit)
    assert "(1,000 MiB over)" in str(result)


@pytest.mark.parametrize(
    ("inventory", "request_", "count"),
    [
        (fleet({"a": [1_000, 500]}), SliceRequest("r", "m", 300), 4),
        (fleet({"a": [1_000, 500]}), SliceRequest("r", "m", 1, compute=30), 6),
        (fleet({"a": [1_000, 500]}, max_clients=2), SliceRequest("r", "m", 1), 4),
        (fleet({"a": [1_000, 500]}), SliceRequest("r", "m", 2_000), 0),
        (
            Inventory((Node("a", cpu_milli=2_500),), fleet({"a": [1_000]}).devices),
            SliceRequest("r", "m", 1, cpu_milli=1_000),
            2,
        ),
    ],
)
def test_room_counts_what_would_fit(inventory: Inventory, request_: SliceRequest, count: int) -> None:
    assert room(inventory, request_) == count
