"""MIG in the running API: profiles, slots, refusals and moves, re-checked from the table."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.defrag import defragment
from packer.inventory import Device, Inventory, MigInstance, Node, NoFit, Placement, SliceRequest
from packer.ledger import Ledger, Oversold
from packer.mix import Mix
from packer.moves import carry_out, make_room
from packer.place import place, room
from packer.verify import verify, verify_moves, verify_plan, verify_refusal

MIG = frozenset({"mps", "mig"})


def devices(count: int, model: str = "NVIDIA A100-SXM4-80GB", memory: int = 81_920, node: str = "n") -> Inventory:
    return Inventory(
        (Node(node),), tuple(Device(f"{node}/gpu-{i}", node, model, memory, mechanisms=MIG) for i in range(count))
    )


def slice_of(name: str, memory: int, compute: int = 0, **fields: int) -> SliceRequest:
    return SliceRequest(name, name, memory, compute=compute, mechanism="mig", **fields)


def fill(inventory: Inventory, *requests: SliceRequest) -> Inventory:
    found = [r for r in place(inventory, requests) if isinstance(r, Placement)]
    assert len(found) == len(requests)
    after = replace(inventory, placements=(*inventory.placements, *found))
    assert verify(after, [r.id for r in requests]) == []
    return after


@pytest.mark.parametrize(
    ("memory", "compute", "profile"),
    [
        (9_000, 14, "1g.10gb"),
        (19_000, 0, "1g.20gb"),
        (9_000, 15, "2g.20gb"),
        (9_000, 50, "4g.40gb"),
        (80_000, 0, "7g.80gb"),
    ],
)
def test_memory_and_compute_choose_the_profile(memory: int, compute: int, profile: str) -> None:
    (lies,) = fill(devices(1), slice_of("a", memory, compute)).placements
    assert [i.profile for i in lies.mig] == [profile]


def test_sums_that_fit_but_slots_that_do_not_are_refused() -> None:
    # Two 3g take all eight memory slots: one compute slice and 28 GB are left that nothing can reach.
    inventory = fill(devices(1), slice_of("a", 21_000, 40), slice_of("b", 21_000, 40))
    (refused,) = place(inventory, [slice_of("c", 9_000, 10)])
    assert isinstance(refused, NoFit)
    assert [r.reason for r in refused.refusals] == ["slots"]
    assert "no empty slots where 1g.10gb may lie" in str(refused)
    assert verify_refusal(inventory, refused) == []


def test_no_profile_is_as_large_and_no_geometry_is_known() -> None:
    (refused,) = place(devices(1, "A30", 24_576), [slice_of("a", 20_000, 10)])
    assert isinstance(refused, Placement)
    (large,) = place(devices(1, "A30", 24_576), [slice_of("b", 24_577)])
    assert isinstance(large, NoFit)
    assert large.permanent
    (unknown,) = place(devices(1, "T4", 16_000), [slice_of("c", 1_000)])
    assert isinstance(unknown, NoFit)
    assert "no MIG geometry is known for T4" in str(unknown)
    assert verify_refusal(devices(1, "T4", 16_000), unknown) == []


def test_room_counts_slots() -> None:
    assert room(devices(2), slice_of("x", 9_000)) == 14
    assert room(devices(2), slice_of("x", 19_000)) == 8
    assert room(devices(2), slice_of("x", 9_000, 40)) == 4


def test_illegal_layouts_are_reported() -> None:
    inventory = devices(1)
    device = inventory.devices[0].id

    def lies(name: str, *instances: MigInstance) -> Placement:
        return Placement(slice_of(name, 9_000), device, "n", mig=instances)

    for placements, words in (
        ((lies("a"),), "not recorded"),
        ((lies("a", MigInstance(7, "1g.10gb")),), "may not start at slot 7"),
        ((lies("a", MigInstance(0, "3g.40gb")), lies("b", MigInstance(3, "1g.10gb"))), "slot 3 is both"),
        ((Placement(slice_of("a", 11_000), device, "n", mig=(MigInstance(0, "1g.10gb"),)),), "too small for a"),
        ((lies("a", MigInstance(0, "5g.50gb")),), "no profile"),
    ):
        assert any(words in p for p in verify(replace(inventory, placements=placements)))


def test_the_ledger_reserves_only_empty_slots() -> None:
    books = Ledger.rebuild(fill(devices(1), slice_of("a", 9_000)))
    (held,) = books.inventory().placements
    again = replace(held, request=replace(held.request, id="b"))
    with pytest.raises(Oversold, match="no empty slots"):
        books.reserve(again)
    with pytest.raises(Oversold, match="no empty slots"):
        books.reserve(replace(again, mig=()))


def test_a_move_empties_slots_for_a_large_profile() -> None:
    inventory = fill(devices(2), slice_of("a", 9_000), slice_of("b", 60_000))
    held = {p.request.id: p for p in inventory.placements}
    assert held["a"].device != held["b"].device
    apart = replace(inventory, placements=(held["a"],))
    other = Placement(slice_of("c", 9_000), held["b"].device, "n", mig=(MigInstance(6, "1g.10gb"),))
    crowded = replace(apart, placements=(held["a"], other))
    request = slice_of("whole", 70_000)
    assert isinstance(place(crowded, [request])[0], NoFit)
    plan = make_room(crowded, request)
    assert plan is not None
    assert len(plan.moves) == 1
    assert verify_plan(crowded, plan) == []
    assert verify(carry_out(crowded, plan)) == []
    assert make_room(crowded, request, fixed=("a", "c")) is None


def lies(name: str, device: Device, start: int, profile: str, memory: int) -> Placement:
    return Placement(slice_of(name, memory), device.id, device.node, mig=(MigInstance(start, profile),))


def test_room_is_made_in_several_rounds_and_within_a_device() -> None:
    fleet = devices(3)
    one, two, three = fleet.devices
    inventory = replace(
        fleet,
        placements=(
            lies("a", one, 0, "2g.20gb", 19_000),
            lies("b", one, 4, "1g.10gb", 9_000),
            lies("c", two, 0, "3g.40gb", 39_000),
            lies("d", three, 4, "3g.40gb", 39_000),
        ),
    )
    assert verify(inventory) == []
    plan = make_room(inventory, slice_of("whole", 70_000))
    assert plan is not None
    assert verify_plan(inventory, plan) == []
    assert {m.instance for m in plan.moves} == {"a", "b"} or len(plan.moves) == 1
    # 4g may lie in a lower half alone: who lies there steps to the upper half of its own device.
    only = replace(devices(1), placements=(lies("c", one, 0, "3g.40gb", 39_000),))
    plan = make_room(only, slice_of("four", 30_000, 50))
    assert plan is not None
    assert [(m.target.device, m.target.mig) for m in plan.moves] == [(one.id, (MigInstance(4, "3g.40gb"),))]
    assert verify_plan(only, plan) == []


def test_room_is_made_for_a_slice_of_several_devices_on_one_node() -> None:
    near, far = devices(2, node="near"), devices(1, node="far")
    fleet = Inventory(near.nodes + far.nodes, near.devices + far.devices)
    inventory = replace(
        fleet,
        placements=tuple(lies(f"s{i}", d, 0, "1g.10gb", 9_000) for i, d in enumerate(near.devices)),
    )
    request = replace(slice_of("wide", 70_000), devices=2)
    assert isinstance(place(inventory, [request])[0], NoFit)
    plan = make_room(inventory, request)
    assert plan is not None
    assert verify_plan(inventory, plan) == []
    assert [m.target.node for m in plan.moves] == ["far", "far"]
    assert make_room(inventory, request, most=1) is None


def test_a_host_without_room_for_both_siblings_keeps_moves_off_it() -> None:
    fleet = devices(1)
    (device,) = fleet.devices
    full = replace(fleet, nodes=(Node("n", cpu_milli=1_500),))
    asked = replace(slice_of("c", 39_000), cpu_milli=1_000)
    held = Placement(asked, device.id, "n", mig=(MigInstance(0, "3g.40gb"),))
    inventory = replace(full, placements=(held,))
    assert make_room(inventory, slice_of("four", 30_000, 50)) is None
    roomy = replace(inventory, nodes=(Node("n", cpu_milli=2_000),))
    assert make_room(roomy, slice_of("four", 30_000, 50)) is not None


def test_tidying_moves_what_strands_slots_and_only_that() -> None:
    fleet = devices(2)
    one, two = fleet.devices
    inventory = replace(
        fleet,
        placements=(
            lies("four", one, 0, "4g.40gb", 39_000),
            lies("two", one, 4, "2g.20gb", 19_000),
            lies("single", one, 6, "1g.10gb", 9_000),
            lies("other", two, 0, "4g.40gb", 39_000),
        ),
    )
    mix = Mix.recent(p.request for p in inventory.placements)
    moves = defragment(inventory, mix)
    assert [(m.instance, m.target.device) for m in moves] == [("single", two.id)]
    assert verify_moves(inventory, moves) == []
    after = replace(
        inventory, placements=tuple(moves[0].target if p.request.id == "single" else p for p in inventory.placements)
    )
    assert defragment(after, mix) == []
    assert defragment(inventory, mix, fixed=("single",)) == []


def test_what_is_expected_decides_where_an_instance_goes() -> None:
    # Expecting 4g, which needs a lower half, a double stays out of it; the tail is left to it.
    mix = Mix.recent([slice_of("x", 30_000, 50)])
    (found,) = place(devices(1), [slice_of("a", 19_000)], mix=mix)
    assert isinstance(found, Placement)
    assert found.mig[0].start >= 4


def test_several_devices_get_an_instance_each() -> None:
    (lies,) = fill(devices(3), slice_of("wide", 30_000, 40, devices=2)).placements
    assert len(lies.mig) == 2
    assert len(set(lies.all_devices)) == 2


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_no_sequence_makes_an_illegal_layout(seed: int) -> None:
    rng = Random(seed)
    first = devices(2, "A100-40", 40_960, "a")
    second = devices(2, "A30-24", 24_576, "b")
    inventory = Inventory(first.nodes + second.nodes, first.devices + second.devices)
    for number in range(25):
        request = SliceRequest(
            f"r{number}",
            f"g{rng.randrange(4)}",
            rng.choice((4_000, 5_500, 9_000, 18_000, 30_000)),
            compute=rng.choice((0, 10, 30, 50)),
            mechanism=rng.choice(("mig", "mig", "mps")),
            devices=rng.choice((1, 1, 1, 2)),
        )
        mix = rng.choice((None, Mix.recent([request])))
        (result,) = place(inventory, [request], mix=mix)
        if isinstance(result, Placement):
            inventory = replace(inventory, placements=(*inventory.placements, result))
        else:
            assert verify_refusal(inventory, result) == []
            plan = make_room(inventory, request, most=3)
            if plan is not None:
                assert verify_plan(inventory, plan) == []
                inventory = carry_out(inventory, plan)
        if rng.random() < 0.3 and inventory.placements:
            gone = rng.choice(inventory.placements)
            inventory = replace(inventory, placements=tuple(p for p in inventory.placements if p != gone))
        if rng.random() < 0.2:
            broken = rng.choice(inventory.devices)
            inventory = replace(
                inventory,
                devices=tuple(replace(d, healthy=not d.healthy) if d == broken else d for d in inventory.devices),
            )
        moves = defragment(inventory, Mix.recent(p.request for p in inventory.placements), least_gain=1.0)
        assert verify_moves(inventory, moves) == []
        held = {p.request.id: p for p in inventory.placements} | {m.instance: m.target for m in moves}
        inventory = replace(inventory, placements=tuple(held.values()))
        assert verify(inventory) == []
        assert Ledger.rebuild(inventory).oversold() == ()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_names_and_order_change_no_figure_of_mig(seed: int) -> None:
    """Placements, refusals, moves and tidying come out the same but for names."""
    rng = Random(seed)
    first, second = devices(2, "A100-40", 40_960, "a"), devices(2, "A100-40", 40_960, "b")
    third = devices(1, "A30-24", 24_576, "c")
    inventory = Inventory(first.nodes + second.nodes + third.nodes, first.devices + second.devices + third.devices)
    new = dict(zip("abc", rng.sample("xyz", 3), strict=True))
    twin = Inventory(
        tuple(Node(new[n.name]) for n in rng.sample(inventory.nodes, 3)),
        tuple(
            replace(d, id=f"{new[d.node]}/{i}", node=new[d.node])
            for i, d in enumerate(rng.sample(inventory.devices, len(inventory.devices)))
        ),
    )
    for number in range(16):
        request = slice_of(f"r{number}", rng.choice((4_000, 5_500, 9_000, 18_000)), rng.choice((0, 10, 30, 50)))
        leaves = rng.random() < 0.3
        gone = rng.randrange(number) if number and leaves else -1
        outcomes = []
        for fleet in (inventory, twin):
            (result,) = place(fleet, [request])
            plan = make_room(fleet, request, most=3)
            if plan is not None:
                assert verify_plan(fleet, plan) == []
                fleet = carry_out(fleet, plan)
            moves = defragment(fleet, Mix.recent(p.request for p in fleet.placements))
            assert verify_moves(fleet, moves) == []
            kept = tuple(p for p in fleet.placements if p.request.id != f"r{gone}")
            figures = (
                (result.score, result.why, [i.profile for i in result.mig])
                if isinstance(result, Placement)
                else [(r.devices, r.reason) for r in result.refusals],
                None if plan is None else len(plan.moves),
                len(moves),
            )
            outcomes.append((figures, replace(fleet, placements=kept)))
        (one, inventory), (other, twin) = outcomes
        assert one == other
        assert _lying(inventory) == _lying(twin)


def _lying(inventory: Inventory) -> list[list[tuple[str, MigInstance]]]:
    """Who lies with whom and in which slots, without saying on which device."""
    return sorted(
        sorted((p.request.id, p.mig[0]) for p in inventory.placements if p.device == d.id) for d in inventory.devices
    )
