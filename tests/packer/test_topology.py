"""Replicas that need several devices get linked ones where there are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.inventory import Device, Distance, Inventory, Node, NoFit, Placement, SliceRequest
from packer.mix import Mix
from packer.moves import carry_out, make_room
from packer.occupancy import Occupancy
from packer.place import place, place_into
from packer.topology import joined
from packer.verify import verify, verify_plan, verify_refusal


def machine(node: str, count: int, pairs: tuple[tuple[int, int], ...] = ()) -> Inventory:
    """Devices of 1,000 MiB; the pairs have NVLink."""
    links: dict[int, dict[str, int]] = {i: {} for i in range(count)}
    for a, b in pairs:
        links[a][f"{node}/gpu-{b}"] = 4
        links[b][f"{node}/gpu-{a}"] = 4
    return Inventory(
        (Node(node),), tuple(Device(f"{node}/gpu-{i}", node, "GPU", 1_000, links=links[i]) for i in range(count))
    )


def board(
    count: int,
    far: Mapping[tuple[int, int], Distance],
    links: Mapping[tuple[int, int], int] | None = None,
    node: str = "n",
) -> Inventory:
    """Devices of 1,000 MiB; each pair is told by its first device alone."""
    return Inventory(
        (Node(node),),
        tuple(
            Device(
                f"{node}/gpu-{i}",
                node,
                "GPU",
                1_000,
                links={f"{node}/gpu-{b}": n for (a, b), n in (links or {}).items() if a == i},
                distances={f"{node}/gpu-{b}": d for (a, b), d in far.items() if a == i},
            )
            for i in range(count)
        ),
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


def test_of_pcie_the_shortest_way() -> None:
    far = {(0, 1): Distance.SYS, (0, 2): Distance.PHB, (1, 3): Distance.PIX, (2, 3): Distance.PXB}
    inventory = board(4, far)
    (found,) = placed(inventory, wide("x"))
    assert set(found.all_devices) == {"n/gpu-1", "n/gpu-3"}
    assert found.why.startswith("2 devices behind one PCIe switch (PIX), on the only node with room")
    # One NVLink before any way over PCIe.
    (found,) = placed(board(4, far, {(0, 1): 1}), wide("x"))
    assert set(found.all_devices) == {"n/gpu-0", "n/gpu-1"}


def test_an_island_that_is_broken_before_a_whole_one() -> None:
    islands = {(a, b): Distance.PIX for i in (0, 4) for a, b in combinations(range(i, i + 4), 2)}
    held = Placement(SliceRequest("h", "h", 500), "n/gpu-5", "n")
    (found,) = placed(replace(board(8, islands), placements=(held,)), wide("x"))
    assert {int(d[-1]) // 4 for d in found.all_devices} == {1}


@pytest.mark.parametrize("by_mix", [False, True])
def test_slices_of_one_device_leave_pairs_whole(by_mix: bool) -> None:
    pairs = {(0, 2): Distance.PIX, (1, 3): Distance.PIX}
    inventory = board(4, pairs)
    requests = [SliceRequest(f"s{i}", f"s{i}", 900) for i in range(2)]
    for request in requests:
        (found,) = place(inventory, [request], mix=Mix.recent(requests) if by_mix else None)
        assert isinstance(found, Placement)
        inventory = replace(inventory, placements=(*inventory.placements, found))
    (pair,) = placed(inventory, wide("x"))
    assert frozenset(int(d[-1]) for d in pair.all_devices) in {frozenset({0, 2}), frozenset({1, 3})}


def test_devices_of_one_model_before_a_mixed_set() -> None:
    inventory = machine("n", 3)
    odd = replace(inventory.devices[1], model="Other")
    (found,) = placed(replace(inventory, devices=(inventory.devices[0], odd, inventory.devices[2])), wide("x"))
    assert set(found.all_devices) == {"n/gpu-0", "n/gpu-2"}


@pytest.mark.parametrize(
    ("links", "far", "count", "text"),
    [
        ({(0, 1): 4}, {}, 2, "2 devices joined by 4 NVLinks"),
        ({(0, 1): 1}, {(0, 1): Distance.SYS}, 2, "2 devices joined by 1 NVLink"),
        ({(0, 1): 2, (1, 2): 2, (0, 2): 2}, {}, 3, "3 devices joined by 2 NVLinks, each with each"),
        ({(0, 1): 2, (1, 2): 2, (0, 2): 4}, {}, 3, "3 devices joined by 2 NVLinks or more, each with each"),
        ({(0, 1): 2}, {(1, 2): Distance.NODE, (0, 2): Distance.PHB}, 3,
         "3 devices on one NUMA node (NODE); 1 of 3 pairs have NVLink"),
        ({(0, 1): 2}, {(1, 2): Distance.NODE}, 3, "3 devices; 1 of 3 pairs have NVLink"),
        ({}, {(0, 1): Distance.SYS}, 2, "2 devices on different NUMA nodes (SYS)"),
        ({}, {(0, 1): Distance.BOARD}, 2, "2 devices on one board"),
        ({}, {}, 2, "2 devices without NVLink"),
    ],
)  # fmt: skip
def test_words(links: dict[tuple[int, int], int], far: dict[tuple[int, int], Distance], count: int, text: str) -> None:
    assert joined(board(count, far, links).devices) == text


Pairs = dict[tuple[int, int], int]


@st.composite
def boards(draw: st.DrawFn, node: str) -> Inventory:
    """Mostly in islands, as machines are, and sometimes any way."""
    count = draw(st.integers(2, 6))
    pairs = list(combinations(range(count), 2))
    far = {p: draw(st.sampled_from((Distance.PIX, Distance.PHB, Distance.NODE, Distance.SYS, None))) for p in pairs}
    links = {p: draw(st.sampled_from((0, 0, 0, 1, 4))) for p in pairs}
    return board(count, {p: d for p, d in far.items() if d is not None}, {p: n for p, n in links.items() if n}, node)


def strength(devices: Sequence[Device]) -> tuple[int, int, int]:
    """By the rule, from the devices' own words."""
    ways = []
    for a, b in combinations(devices, 2):
        links = max(a.links.get(b.id, 0), b.links.get(a.id, 0))
        far = min(a.distances.get(b.id, Distance.SYS), b.distances.get(a.id, Distance.SYS))
        ways.append((links, -int(far)))
    weakest = min(ways)
    return 64 * weakest[0] + 50 + weakest[1], sum(n for n, _ in ways), sum(50 + d for _, d in ways)


@settings(deadline=None, max_examples=80)
@given(boards("a"), boards("b"), st.integers(2, 4), st.lists(st.integers(0, 11), max_size=5), st.booleans())
def test_no_set_that_is_free_is_linked_better(
    a: Inventory, b: Inventory, count: int, busy: list[int], by_mix: bool
) -> None:
    fleet = both(a, b)
    taken = {fleet.devices[i].id for i in busy if i < len(fleet.devices)}
    fleet = replace(fleet, placements=tuple(Placement(SliceRequest(d, d, 500), d, d[0]) for d in sorted(taken)))
    request = replace(wide("x", count), compute=100, whole=True)
    (found,) = place(fleet, [request], mix=Mix.recent([request]) if by_mix else None)
    trial = place_into(Occupancy(fleet), request)
    sets = [
        s
        for node in "ab"
        for s in combinations([d for d in fleet.devices if d.node == node and d.id not in taken], count)
    ]
    if not sets:
        assert isinstance(found, NoFit) and trial is None
        assert verify_refusal(fleet, found) == []
        return
    best = max(strength(s) for s in sets)
    table = {d.id: d for d in fleet.devices}
    for lies in (found, trial):
        assert isinstance(lies, Placement)
        assert verify(replace(fleet, placements=(*fleet.placements, lies)), ["x"]) == []
        assert strength([table[d] for d in lies.all_devices]) == best


@settings(deadline=None, max_examples=60)
@given(boards("a"), boards("b"), st.lists(st.integers(1, 3), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_neither_names_nor_order_decide(a: Inventory, b: Inventory, sizes: list[int], rng: Random) -> None:
    """The same requests, one after the other, to a fleet and its twin: sets linked alike, and as many placed."""
    fleet = both(a, b)
    names = {
        d.id: f"{d.node}/{n}" for d, n in zip(fleet.devices, rng.sample(range(99), len(fleet.devices)), strict=True)
    }
    twins = tuple(
        replace(
            d,
            id=names[d.id],
            links={names[o]: n for o, n in d.links.items()},
            distances={names[o]: far for o, far in d.distances.items()},
        )
        for d in fleet.devices
    )
    twin = Inventory(tuple(rng.sample(fleet.nodes, 2)), tuple(rng.sample(twins, len(twins))))
    for number, count in enumerate(sizes):
        request = replace(wide(f"r{number}", count, 400), compute=100, whole=count > 1)
        outcomes = []
        for side in (fleet, twin):
            (found,) = place(side, [request], mix=Mix.recent([request]))
            table = {d.id: d for d in side.devices}
            free = {d.id for d in side.devices} - {d for p in side.placements for d in p.all_devices}
            if isinstance(found, NoFit):
                outcomes.append(None)
                continue
            rest = [table[d] for d in sorted(free - {*found.all_devices}) if table[d].node == found.node]
            own = strength([table[d] for d in found.all_devices]) if count > 1 else None
            outcomes.append((own, sorted(strength(pair) for pair in combinations(rest, 2))))
            if side is fleet:
                fleet = replace(fleet, placements=(*fleet.placements, found))
            else:
                twin = replace(twin, placements=(*twin.placements, found))
        assert outcomes[0] == outcomes[1]


def test_a_fleet_of_many_linked_nodes_is_ranked_at_once() -> None:
    """As exact as one by one: of 300 nodes of eight the one with the free NVLink pair."""
    inventory = Inventory((), ())
    for n in range(300):
        node = machine(f"n{n}", 8, ((0, 1), (2, 3), (4, 5), (6, 7)))
        held = [1, 3, 5, 7] if n != 217 else [1, 3, 5]
        taken = tuple(Placement(SliceRequest(f"h{n}-{i}", f"h{n}-{i}", 900), f"n{n}/gpu-{i}", f"n{n}") for i in held)
        inventory = replace(both(inventory, node), placements=inventory.placements + taken)
    (found,) = placed(inventory, wide("x"))
    assert set(found.all_devices) == {"n217/gpu-6", "n217/gpu-7"}
    assert "joined by 4 NVLinks, linked best of" in found.why
