"""The adaptive policy on the indexed engine: sound, work-conserving, and blind to names."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from packer.adaptive import Adaptive
from packer.defrag import defragment
from packer.engine import Bay, Engine, Rack
from packer.fleet import Fleet
from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.mix import Mix, Shape
from packer.moves import carry_out, make_room
from packer.place import place, room
from packer.tenants import Tenants
from packer.verify import verify, verify_moves, verify_plan, verify_refusal

SHAPES = (
    Shape(compute=81, cpu_milli=3_000, host_memory_mib=1_000),
    Shape(compute=47, cpu_milli=12_000, host_memory_mib=2_000),
    Shape(compute=19, cpu_milli=1_000, host_memory_mib=100),
    Shape(compute=100, devices=2, cpu_milli=8_000, host_memory_mib=4_000),
    Shape(compute=100, cpu_milli=8_000, host_memory_mib=4_000, device_models=frozenset({"T4"})),
    Shape(devices=0, cpu_milli=6_000, host_memory_mib=500),
)
MIX = Mix.of({s: 6.0 - i for i, s in enumerate(SHAPES)})


def racks(rng: Random) -> list[Rack]:
    return [
        Rack(rng.choice((32_000, 64_000)), 64_000, (Bay(rng.choice(("T4", "G2"))),) * rng.choice((2, 4)))
        for _ in range(12)
    ]


def run(fleet: list[Rack], seed: int, moving: bool) -> list[object]:
    rng = Random(seed)
    tenants = Tenants(Engine(fleet, Adaptive(MIX)))
    figures: list[object] = []
    for key in range(220):
        shape = rng.choice(SHAPES)
        placed = tenants.place(shape, key)
        if placed is None:
            column = tenants.engine.column(shape)
            fits, _ = tenants.engine.fits(column, column.open.nonzero()[0])
            assert len(fits) == 0
            if moving and (room := tenants.make_room(shape, 4)) is not None:
                figures.append(len(room[0]))
                placed = tenants.place(shape, key)
                assert placed is not None
        figures.append(placed is not None)
        if rng.random() < 0.4:
            tenants.leave(sorted(tenants.held)[rng.randrange(len(tenants.held))])
        engine = tenants.engine
        assert (engine.cpu >= 0).all()
        assert (engine.ram >= 0).all()
        assert (engine.compute >= 0).all()
    return figures


def test_churn_with_moves_never_oversells_and_refuses_only_what_fits_nowhere() -> None:
    figures = run(racks(Random(3)), 3, moving=True)
    assert any(f is False for f in figures)
    assert any(type(f) is int for f in figures)


def test_permuting_the_nodes_changes_no_figure() -> None:
    for seed in range(3):
        fleet = racks(Random(seed))
        shuffled = Random(seed + 50).sample(fleet, len(fleet))
        assert run(fleet, seed, moving=True) == run(shuffled, seed, moving=True)


def inventory(nodes: int, per_node: int) -> Inventory:
    return Inventory(
        tuple(Node(f"n{i}", 64_000, 256_000) for i in range(nodes)),
        tuple(
            Device(f"n{i}/gpu-{j}", f"n{i}", "A100", 40_000, mechanisms=frozenset({"mps"}))
            for i in range(nodes)
            for j in range(per_node)
        ),
    )


def slices(rng: Random, count: int) -> list[SliceRequest]:
    return [
        SliceRequest(
            f"r{i}",
            f"m{rng.randrange(6)}",
            rng.choice((4_000, 9_000, 22_000, 38_000)),
            compute=rng.choice((0, 10, 30)),
            mechanism="mps",
            cpu_milli=rng.choice((0, 2_000)),
        )
        for i in range(count)
    ]


def test_place_with_a_mix_is_sound_and_its_refusals_are_true() -> None:
    fleet = inventory(3, 2)
    requests = slices(Random(5), 40)
    results = place(fleet, requests, mix=Mix.recent(requests))
    placed = [r for r in results if isinstance(r, Placement)]
    after = replace(fleet, placements=tuple(placed))
    assert verify(after, [p.request.id for p in placed]) == []
    refused = [r for r in results if isinstance(r, NoFit)]
    assert refused
    for refusal in refused:
        assert verify_refusal(after, refusal) == []
        plan = make_room(after, refusal.request)
        if plan is not None:
            assert verify_plan(after, plan) == []
            assert verify(carry_out(after, plan)) == []


def test_replicas_still_spread_with_a_mix() -> None:
    requests = [SliceRequest(f"m-{i}", "m", 1_000, mechanism="mps") for i in range(6)]
    results = place(inventory(3, 2), requests, mix=Mix.recent(requests))
    assert len({r.device for r in results if isinstance(r, Placement)}) == 6


def small_machines(nodes: int, per_node: int, cpu: int | None = None) -> Inventory:
    """Devices of 1,000 MiB, each with a slice of 400 MiB and 20% of a group of its own."""
    devices = tuple(Device(f"n{i}/gpu-{j}", f"n{i}", "GPU", 1_000) for i in range(nodes) for j in range(per_node))
    held = tuple(
        Placement(SliceRequest(f"{d.id}-r", f"{d.id}-m", 400, compute=20, cpu_milli=1_000), d.id, d.node)
        for d in devices
    )
    return Inventory(tuple(Node(f"n{i}", cpu) for i in range(nodes)), devices, held)


WHOLE = Mix.of({Shape(compute=80, memory_mib=900, mechanism="virtual"): 1.0})


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 2), (2, 2), (2, 1), (1, 8)])
def test_small_machines_are_defragmented_within_and_across_nodes(nodes: int, per_node: int) -> None:
    before = small_machines(nodes, per_node)
    assert room(before, SliceRequest("x", "x", 900, compute=80)) == 0
    (move,) = defragment(before, WHOLE, most=1)
    after = replace(before, placements=tuple(move.target if p == move.source else p for p in before.placements))
    assert verify(after) == []
    assert room(after, SliceRequest("x", "x", 900, compute=80)) == 1


def test_a_move_within_a_node_needs_its_host_for_both_at_once() -> None:
    assert defragment(small_machines(1, 2, cpu=3_000), WHOLE)
    assert defragment(small_machines(1, 2, cpu=2_000), WHOLE) == []


def test_defragmentation_puts_no_siblings_on_one_device() -> None:
    before = small_machines(1, 2)
    alike = tuple(replace(p, request=replace(p.request, group="same")) for p in before.placements)
    assert defragment(replace(before, placements=alike), WHOLE) == []


def test_moves_that_pay_only_together_are_made_together() -> None:
    # Two small slices keep a device from being whole; moving one of them alone gains next to nothing.
    fleet = Inventory(
        tuple(Node(f"n{i}") for i in range(3)), tuple(Device(f"n{i}/g", f"n{i}", "T4", 1_000) for i in range(3))
    )

    def lies(name: str, node: str, compute: int) -> Placement:
        return Placement(SliceRequest(name, name, 10, compute=compute), f"{node}/g", node)

    before = replace(
        fleet, placements=(lies("a", "n0", 10), lies("b", "n0", 10), lies("c", "n1", 90), lies("d", "n2", 90))
    )
    mix = Mix.of({Shape(compute=100, memory_mib=10, mechanism="virtual"): 1.0})
    moves = defragment(before, mix)
    assert {m.instance for m in moves} == {"a", "b"}
    assert {m.target.device for m in moves} == {"n1/g", "n2/g"}
    assert verify_moves(before, moves) == []
    assert defragment(before, mix, most=1) == []
    assert defragment(before, mix, fixed=("a", "b")) == []
    # What a run begins pays by itself once the first of it is done.
    begun = replace(before, placements=(moves[0].target, *(p for p in before.placements if p != moves[0].source)))
    assert [m.instance for m in defragment(begun, mix, most=1)] == [moves[1].instance]


def test_different_devices_on_one_node_have_prices_too() -> None:
    devices = (Device("n/gpu-0", "n", "T4", 300), Device("n/gpu-1", "n", "A100", 800))
    requests = [SliceRequest("large", "m", 500), SliceRequest("small", "k", 250)]
    found = place(Inventory((Node("n"),), devices), requests, mix=Mix.recent(requests))
    assert all(isinstance(f, Placement) for f in found)


def test_several_devices_of_one_node() -> None:
    fleet = inventory(2, 4)
    (result,) = place(fleet, [SliceRequest("big", "big", 30_000, compute=90, mechanism="mps", devices=4)])
    assert isinstance(result, Placement)
    assert len(set(result.all_devices)) == 4
    after = replace(fleet, placements=(result,))
    assert verify(after, ("big",)) == []
    (second, third) = place(
        after,
        [SliceRequest(n, n, 30_000, compute=90, mechanism="mps", devices=4) for n in ("second", "third")],
    )
    assert isinstance(second, Placement)
    assert isinstance(third, NoFit)
    assert "needs 4 devices" in str(third) or "more memory needed" in str(third)


def test_large_fleets_go_by_the_index_and_make_room_by_search() -> None:
    fleet = inventory(20, 4)
    held = tuple(
        Placement(SliceRequest(f"h{i}", "h", 21_000, mechanism="mps"), d.id, d.node)
        for i, d in enumerate(fleet.devices)
    )
    full = replace(fleet, placements=held[:-1])
    request = SliceRequest("whole", "whole", 39_000, mechanism="mps")
    (result,) = place(full, [request])
    assert isinstance(result, Placement)
    (refused,) = place(replace(full, placements=held), [request])
    assert isinstance(refused, NoFit)
    small = tuple(replace(p, request=replace(p.request, memory_mib=10_000)) if i % 2 else p for i, p in enumerate(held))
    crowded = replace(full, placements=small)
    plan = make_room(crowded, request)
    assert plan is not None
    assert len(plan.moves) == 1
    assert verify_plan(crowded, plan) == []


def test_a_device_bound_to_a_mechanism_takes_no_other() -> None:
    devices = tuple(
        Device(f"n/gpu-{i}", "n", "A100", 40_000, mechanisms=frozenset({"mps", "timeslice"})) for i in range(1)
    )
    held = Placement(SliceRequest("a", "a", 1_000, mechanism="mps"), "n/gpu-0", "n")
    fleet = Inventory((Node("n"),), devices, (held,))
    wanted = SliceRequest("b", "b", 1_000, mechanism="timeslice")
    assert Fleet.of(fleet).place(wanted) is None
    assert Fleet.of(fleet).place(replace(wanted, mechanism="mps")) is not None


def test_defragmentation_frees_a_device_for_what_is_expected_and_then_rests() -> None:
    fleet = inventory(4, 1)
    held = tuple(
        Placement(SliceRequest(f"h{i}", f"g{i}", 15_000, compute=40, mechanism="mps"), f"n{i}/gpu-0", f"n{i}")
        for i in range(4)
    )
    spread_thin = replace(fleet, placements=held)
    mix = Mix.of({Shape(compute=100, memory_mib=39_000, mechanism="mps"): 1.0})
    moves = defragment(spread_thin, mix, most=4)
    assert 1 <= len(moves) <= 2
    where = {p.request.id: p for p in held}
    for move in moves:
        assert where[move.instance] == move.source
        where[move.instance] = move.target
    after = replace(fleet, placements=tuple(where.values()))
    assert verify(after) == []
    assert len({p.device for p in after.placements}) == 4 - len(moves)
    assert defragment(after, mix, most=4) == []
    assert defragment(spread_thin, mix, fixed=where.keys()) == []
