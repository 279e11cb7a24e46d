"""Replicas that need several devices get linked ones where there are some."""

from __future__ import annotations

from dataclasses import replace

import pytest

from packer.inventory import Device, Inventory, Node, Placement, SliceRequest
from packer.moves import carry_out, make_room
from packer.place import place
from packer.verify import verify, verify_plan


def machine(node: str, count: int, pairs: tuple[tuple[int, int], ...] = ()) -> Inventory:
    """Devices of 1,000 MiB; the pairs have NVLink."""
    links: dict[int, dict[str, int]] = {i: {} for i in range(count)}
    for a, b in pairs:
        links[a][f"{node}/gpu-{b}"] = 4
        links[b][f"{node}/gpu-{a}"] = 4
    return Inventory(
        (Node(node),), tuple(Device(f"{node}/gpu-{i}", node, "GPU", 1_000, links=links[i]) for i in range(count))
    )


def both(a: Inventory, b: Inventory) -> Inventory:
    return Inventory(a.nodes + b.nodes, a.devices + b.devices)


def wide(name: str, devices: int = 2, memory: int = 900) -> SliceRequest:
    return SliceRequest(name, name, memory, devices=devices)


def placed(inventory: Inventory, *requests: SliceRequest) -> list[Placement]:
    found = place(inventory, requests)
    assert (
        verify(replace(inventory, placements=(*inventory.placements, *(f for f in found if isinstance(f, Placement)))))
        == []
    )
    return [f for f in found if isinstance(f, Placement)]


def test_pairs_with_nvlink_before_pcie() -> None:
    inventory = machine("n", 4, ((0, 2), (1, 3)))
    found = placed(inventory, wide("a"), wide("b"))
    assert {frozenset(p.all_devices) for p in found} == {
        frozenset({"n/gpu-0", "n/gpu-2"}),
        frozenset({"n/gpu-1", "n/gpu-3"}),
    }


def test_a_node_with_links_before_one_without() -> None:
    for fleet in (both(machine("a", 2), machine("b", 2, ((0, 1),))), both(machine("b", 2, ((0, 1),)), machine("a", 2))):
        (found,) = placed(fleet, wide("x"))
        assert found.node == "b"


def test_without_a_free_pair_pcie_will_do() -> None:
    inventory = machine("n", 3, ((0, 1),))
    held = Placement(SliceRequest("h", "h", 500), "n/gpu-0", "n")
    (found,) = placed(replace(inventory, placements=(held,)), wide("x"))
    assert set(found.all_devices) == {"n/gpu-1", "n/gpu-2"}


def test_the_weakest_pair_counts_first() -> None:
    ring = machine("n", 4, ((0, 1), (1, 2), (0, 2)))
    (found,) = placed(ring, wide("x", 3))
    assert set(found.all_devices) == {"n/gpu-0", "n/gpu-1", "n/gpu-2"}


def test_large_nodes_too() -> None:
    inventory = machine("n", 16, tuple((a, b) for a in range(0, 16, 2) for b in range(a, 16, 2) if a < b))
    (found,) = placed(inventory, wide("x", 8))
    assert {int(d.rpartition("-")[2]) % 2 for d in found.all_devices} == {0}


@pytest.mark.parametrize("node", ["a", "z"])
def test_moves_end_on_linked_devices_and_leave_them_alone(node: str) -> None:
    inventory = both(machine("n", 4, ((0, 1), (2, 3))), machine(node, 2))
    (pair,) = placed(inventory, wide("pair", memory=600))
    others = [d for d in inventory.devices if d.id not in pair.all_devices]
    small = tuple(Placement(SliceRequest(f"s-{d.id}", f"s-{d.id}", 300), d.id, d.node) for d in others)
    full = replace(inventory, placements=(pair, *small))
    plan = make_room(full, wide("new"))
    assert plan is not None
    assert verify_plan(full, plan) == []
    after = carry_out(full, plan)
    assert pair in after.placements
