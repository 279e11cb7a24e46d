"""Requests for several whole devices: all of each, and nobody beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.cures import cures
from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.ledger import Ledger, Oversold
from packer.mix import Mix
from packer.moves import carry_out, make_room
from packer.occupancy import Occupancy
from packer.place import Placer, place, place_into, room
from packer.verify import verify, verify_plan, verify_refusal


def machine(*sizes: int, node: str = "n", reserve: int = 100) -> Inventory:
    devices = tuple(Device(f"{node}/gpu-{i}", node, "GPU", mib, reserve_mib=reserve) for i, mib in enumerate(sizes))
    return Inventory((Node(node),), devices)


def whole(name: str = "wide", devices: int = 2, memory: int = 500) -> SliceRequest:
    return SliceRequest(name, name, memory, compute=100, devices=devices, whole=True)


def small(name: str, on: str, memory: int = 100) -> Placement:
    return Placement(SliceRequest(name, name, memory), on, on.split("/")[0])


def held(inventory: Inventory, *placements: Placement) -> Inventory:
    return replace(inventory, placements=(*inventory.placements, *placements))


Place = Callable[[Inventory, Sequence[SliceRequest]], list[Placement | NoFit]]
WAYS: dict[str, Place] = {
    "place": place,
    "by mix": lambda inventory, requests: place(inventory, requests, mix=Mix.recent(requests)),
    "batch after batch": lambda inventory, requests: [Placer(inventory).place([r])[0] for r in requests],
}


@pytest.mark.parametrize("way", WAYS)
def test_nobody_lies_beside_whatever_memory_it_asks(way: str) -> None:
    inventory = machine(1_000, 1_000, 1_000)
    (wide,) = WAYS[way](inventory, [whole(memory=10)])
    assert isinstance(wide, Placement) and len(set(wide.all_devices)) == 2
    after = held(inventory, wide)
    assert verify(after, ["wide"]) == []
    (alone,) = {d.id for d in after.devices} - {*wide.all_devices}
    first, second = place(after, [SliceRequest("a", "a", 1), SliceRequest("b", "b", 1)])
    assert [p.device for p in (first, second) if isinstance(p, Placement)] == [alone, alone]
    assert verify(held(after, small("c", wide.device, 1))) != []
    assert Ledger.rebuild(after).balance(wide.device).guaranteed_mib == 900


@pytest.mark.parametrize("way", WAYS)
def test_a_device_in_use_is_not_taken_however_much_is_free(way: str) -> None:
    inventory = held(machine(1_000, 1_000), small("s", "n/gpu-0", 1))
    (refused,) = WAYS[way](inventory, [whole(memory=10)])
    assert isinstance(refused, NoFit)
    assert verify_refusal(inventory, refused) == []
    assert not refused.permanent
    assert str(refused) == (
        "2 x GPU of 1,000 MiB (node n): the slice needs 2 devices of one node, and at most 1 of a node have room "
        "(it holds 1 slice, and the request takes whole devices)"
    )
    (both,) = WAYS[way](held(inventory, small("t", "n/gpu-1", 1)), [whole(memory=10)])
    assert isinstance(both, NoFit)
    assert both.refusals[0].reason == "occupied"
    assert "holds 1 slice, and the request takes whole devices" in str(both)


def test_more_devices_than_any_node_has_is_said_with_the_number() -> None:
    two, three = machine(1_000, 1_000, node="a"), machine(1_000, 1_000, 400, node="b")
    fleet = Inventory(two.nodes + three.nodes, two.devices + three.devices)
    (refused,) = place(fleet, [whole(devices=3)])
    assert isinstance(refused, NoFit)
    assert refused.permanent
    assert {r.reason for r in refused.refusals} == {"too-large", "too-many"}
    assert verify_refusal(fleet, refused) == []
    assert "the slice needs 3 devices of one node, and no such node has more than 2" in str(refused)
    assert "500 MiB of memory is more than the 300 MiB of such a device" in str(refused)
    assert str(cures(fleet, refused)) == "a node with 3 devices of 500 MiB usable and 100% compute would take it"


def test_how_many_more_fit() -> None:
    inventory = machine(1_000, 1_000, 1_000, 1_000, 1_000)
    assert room(inventory, whole()) == 2
    assert room(held(inventory, small("s", "n/gpu-0"), small("t", "n/gpu-1")), whole()) == 1
    parts = replace(whole(memory=300), compute=0, whole=False)
    # Three on each of five devices, two devices each.
    assert room(inventory, parts) == 7
    assert room(machine(1_900, 400), parts) == 1


def test_all_devices_are_reserved_or_none() -> None:
    inventory = machine(1_000, 1_000)
    books = Ledger.rebuild(held(inventory, small("s", "n/gpu-1")))
    with pytest.raises(Oversold, match=r"instance 'wide' on n/gpu-1: .*takes whole devices"):
        books.reserve(Placement(whole(), "n/gpu-0", "n", more_devices=("n/gpu-1",)))
    assert set(books.entries) == {"s"}
    books = books.release("s").reserve(Placement(whole(), "n/gpu-0", "n", more_devices=("n/gpu-1",)))
    with pytest.raises(Oversold):
        books.reserve(small("s", "n/gpu-1", 1))
    assert books.release("wide").reserve(small("s", "n/gpu-1", 1)).oversold() == ()


def test_moves_empty_the_devices() -> None:
    a, b = machine(1_000, 1_000, node="a"), machine(1_000, node="b")
    fleet = Inventory(a.nodes + b.nodes, a.devices + b.devices)
    fleet = held(fleet, small("s", "a/gpu-0", 200), small("t", "a/gpu-1", 200))
    plan = make_room(fleet, whole())
    assert plan is not None and len(plan.moves) == 2
    assert verify_plan(fleet, plan) == []
    assert set(plan.placement.all_devices) == {"a/gpu-0", "a/gpu-1"}
    assert verify(carry_out(fleet, plan)) == []


def test_moves_within_the_node() -> None:
    """Two of three devices are wanted, and two hold a slice each: one goes beside the other."""
    fleet = held(machine(1_000, 1_000, 1_000), small("s", "n/gpu-0", 300), small("t", "n/gpu-2", 500))
    plan = make_room(fleet, whole())
    assert plan is not None and [m.instance for m in plan.moves] == ["s"]
    assert verify_plan(fleet, plan) == []
    assert make_room(fleet, whole(), fixed={"s", "t"}) is None
    assert make_room(fleet, whole(), most=0) is None
    assert make_room(held(machine(1_000, 1_000), small("s", "n/gpu-0"), small("t", "n/gpu-1")), whole()) is None


def test_moves_of_others_where_the_tenants_of_no_set_fit_elsewhere() -> None:
    """gpu-0 and gpu-1 are linked by nothing but that their tenants are few; a third has to step aside first."""
    fleet = held(
        machine(1_000, 1_000, 1_000, 1_000, reserve=0),
        small("a", "n/gpu-0", 600),
        small("b", "n/gpu-2", 500),
        small("c", "n/gpu-3", 350),
        small("d", "n/gpu-3", 200),
    )
    plan = make_room(fleet, whole())
    assert plan is not None
    assert verify_plan(fleet, plan) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(50, 600), st.sampled_from((0, 20, 50))), max_size=6),
    st.integers(2, 3),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_plans_for_whole_devices_hold_at_every_step(
    slices: list[tuple[int, int, int]], devices: int, fixed: set[int]
) -> None:
    fleet = machine(1_000, 1_000, 800, 1_000)
    for number, (on, memory, compute) in enumerate(slices):
        lies = small(f"s{number}", f"n/gpu-{on}", memory)
        more = held(fleet, replace(lies, request=replace(lies.request, compute=compute)))
        fleet = fleet if verify(more) else more
    stays = {f"s{n}" for n in fixed}
    plan = make_room(fleet, whole(devices=devices), fixed=stays)
    if plan is not None:
        assert verify_plan(fleet, plan) == []
        assert not stays & {m.instance for m in plan.moves}


def test_trials_place_as_the_placer_does() -> None:
    inventory = held(machine(1_000, 1_000, 1_000), small("s", "n/gpu-1"))
    copy = Occupancy(inventory)
    found = place_into(copy, whole())
    assert found is not None and set(found.all_devices) == {"n/gpu-0", "n/gpu-2"}
    copy.add(found)
    assert place_into(copy, whole("more")) is None
    copy.remove("wide")
    assert place_into(copy, whole("more")) is not None


@pytest.mark.parametrize(
    "wrong", [replace(whole(), devices=1), replace(whole(), compute=50), replace(whole(), mechanism="mig")]
)
def test_what_is_not_several_whole_devices_is_refused(wrong: SliceRequest) -> None:
    with pytest.raises(ValueError, match="whole: True is out of range; ask for several devices and 100 percent"):
        place(machine(1_000, 1_000), [wrong])
