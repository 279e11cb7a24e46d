"""Moves on small machines: fewest, ordered, and never oversold on the way."""

from __future__ import annotations

from random import Random

import pytest

from packer import exact
from packer.cures import cures
from packer.inventory import Device, Inventory, Node, NoFit, Placement, SliceRequest
from packer.moves import carry_out, make_room
from packer.place import place
from packer.verify import verify, verify_plan


def machine(sizes: list[int], held: dict[str, tuple[int, int]]) -> Inventory:
    """`held` says name -> (device number, MiB)."""
    devices = tuple(Device(f"n/gpu-{i}", "n", "GPU", size) for i, size in enumerate(sizes))
    placements = tuple(
        Placement(SliceRequest(name, name, memory), f"n/gpu-{d}", "n") for name, (d, memory) in held.items()
    )
    return Inventory((Node("n"),), devices, placements)


@pytest.fixture(params=["solver", "search"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both with the solver and without it."""
    if request.param == "solver":
        pytest.importorskip("ortools")
    else:
        monkeypatch.setattr(exact, "_solver", lambda: None)
    return str(request.param)


def test_one_move_makes_room(way: str) -> None:
    inventory = machine([100, 100], {"a": (0, 40), "b": (1, 40)})
    plan = make_room(inventory, SliceRequest("new", "new", 100))
    assert plan is not None
    assert len(plan.moves) == 1
    assert verify_plan(inventory, plan) == []
    assert verify(carry_out(inventory, plan)) == []


def test_no_plan_where_the_sum_is_too_large(way: str) -> None:
    inventory = machine([100, 100], {"a": (0, 60), "b": (1, 60)})
    assert make_room(inventory, SliceRequest("new", "new", 90)) is None


def test_the_fixed_stay(way: str) -> None:
    inventory = machine([100, 100], {"a": (0, 40), "b": (1, 40)})
    plan = make_room(inventory, SliceRequest("new", "new", 100), fixed={"a"})
    assert plan is not None
    assert [m.instance for m in plan.moves] == ["b"]
    assert make_room(inventory, SliceRequest("new", "new", 100), fixed={"a", "b"}) is None


def test_moves_are_bounded(way: str) -> None:
    inventory = machine([100, 100], {"a": (0, 20), "b": (0, 20), "c": (1, 20), "d": (1, 20)})
    assert make_room(inventory, SliceRequest("new", "new", 100), most=1) is None
    plan = make_room(inventory, SliceRequest("new", "new", 100), most=2)
    assert plan is not None
    assert len(plan.moves) == 2


def test_what_fits_needs_no_moves(way: str) -> None:
    plan = make_room(machine([100], {}), SliceRequest("new", "new", 100))
    assert plan is not None
    assert plan.moves == ()


def test_the_fewest_moves_are_proven() -> None:
    pytest.importorskip("ortools")
    inventory = machine([100, 100], {"a": (0, 20), "b": (0, 20), "c": (1, 20), "d": (1, 20)})
    assert exact.fewest(inventory, SliceRequest("new", "new", 100)) == 2
    assert exact.fewest(inventory, SliceRequest("new", "new", 60)) == 0
    assert exact.fewest(inventory, SliceRequest("new", "new", 100), fixed=("a", "c")) is None


def test_of_plans_as_short_the_one_that_keeps_a_group_apart_is_taken(way: str) -> None:
    # "new" needs a whole device. Either a goes to b's device, or b to a's, or either to c's: only c is no sibling of a.
    held = {"a": (0, 40), "b": (1, 40), "c": (2, 41), "d": (3, 90)}
    inventory = machine([100, 100, 100, 100], held)
    groups = {"a": "m", "b": "m"}
    inventory = Inventory(
        inventory.nodes,
        inventory.devices,
        tuple(
            Placement(SliceRequest(r.id, groups.get(r.id, r.group), r.memory_mib), p.device, p.node)
            for p in inventory.placements
            for r in (p.request,)
        ),
    )
    plan = make_room(inventory, SliceRequest("new", "new", 100))
    assert plan is not None
    assert len(plan.moves) == 1
    after = carry_out(inventory, plan)
    assert verify(after) == []
    devices = [p.device for p in after.placements if p.request.group == "m"]
    assert len(set(devices)) == 2
    # A newcomer of the group goes where no sibling lies, though it would fit beside one as well.
    newcomer = make_room(inventory, SliceRequest("m-2", "m", 55))
    assert newcomer is not None
    assert newcomer.placement.device == "n/gpu-2"


def test_random_machines_never_oversell_on_the_way(way: str) -> None:
    rng = Random(1)
    plans = 0
    for _ in range(25):
        inventory = machine([100] * rng.randint(2, 4), {})
        for number in range(12):
            request = SliceRequest(f"r{number}", f"g{number}", rng.randint(10, 60))
            (result,) = place(inventory, [request])
            if isinstance(result, Placement):
                inventory = Inventory(inventory.nodes, inventory.devices, (*inventory.placements, result))
            elif (plan := make_room(inventory, request, most=3)) is not None:
                assert verify_plan(inventory, plan) == []
                inventory = carry_out(inventory, plan)
                plans += 1
            assert verify(inventory) == []
    assert plans > 0


def test_a_plan_in_the_wrong_order_is_found_out() -> None:
    inventory = machine([100, 100], {"a": (0, 40), "b": (1, 40)})
    plan = make_room(inventory, SliceRequest("new", "new", 100))
    assert plan is not None
    wrong = type(plan)((), plan.placement)
    assert any("MiB guaranteed" in p for p in verify_plan(inventory, wrong))


def test_cures_name_moves_and_a_smaller_slice() -> None:
    inventory = machine([100, 100], {"a": (0, 40), "b": (1, 40)})
    (refused,) = place(inventory, [SliceRequest("new", "new", 90)])
    assert isinstance(refused, NoFit)
    found = cures(inventory, refused)
    assert found.moves is not None
    assert found.smaller is not None
    assert found.smaller.memory_mib == 60
    assert "1 move would make room" in str(found)
    (huge,) = place(inventory, [SliceRequest("huge", "huge", 500)])
    assert isinstance(huge, NoFit)
    assert "500 MiB usable" in str(cures(inventory, huge))
