"""MIG geometry and placement of profiles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.inventory import MigInstance as Instance
from packer.mig import GEOMETRIES, capacity, openings, repackable, verify_layout
from packer.slots import Ask, Seat, Shift, Slots

H100 = "H100-80"
NAMES = [p.name for p in GEOMETRIES[H100].profiles]


@pytest.mark.parametrize(
    ("model", "counts"),
    [
        ("A100-40", {"1g.5gb": 7, "1g.10gb": 4, "2g.10gb": 3, "3g.20gb": 2, "4g.20gb": 1, "7g.40gb": 1}),
        ("H200-141", {"1g.18gb": 7, "1g.35gb": 4, "2g.35gb": 3, "3g.71gb": 2, "4g.71gb": 1, "7g.141gb": 1}),
        ("A30-24", {"1g.6gb": 4, "2g.12gb": 2, "4g.24gb": 1}),
    ],
)
def test_greatest_counts_are_the_vendors(model: str, counts: dict[str, int]) -> None:
    assert {p: capacity(model, frozenset(), p) for p in counts} == counts


def test_three_and_four_share_a_device_and_leave_nothing() -> None:
    layout = frozenset({Instance(0, "4g.40gb"), Instance(4, "3g.40gb")})
    assert verify_layout(H100, layout) == []
    assert all(openings(H100, layout, p) == () for p in NAMES)


def test_illegal_layouts_are_named() -> None:
    assert verify_layout(H100, [Instance(6, "2g.20gb")])
    assert verify_layout(H100, [Instance(0, "3g.40gb"), Instance(3, "1g.10gb")])
    assert verify_layout(H100, [Instance(0, "7g.80gb"), Instance(7, "1g.10gb")])


@pytest.mark.parametrize(
    ("memory", "compute", "profile"),
    [(8_000, 10, "1g.10gb"), (16_000, 10, "1g.20gb"), (16_000, 20, "2g.20gb"), (30_000, 50, "4g.40gb")],
)
def test_compute_then_memory_choose_the_profile(memory: int, compute: int, profile: str) -> None:
    chosen = GEOMETRIES[H100].profile_for(memory, compute)
    assert chosen is not None
    assert chosen.name == profile
    assert GEOMETRIES[H100].profile_for(90_000, 10) is None


ALIKE = {H100: dict.fromkeys(NAMES, 1.0)}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5), st.booleans()), max_size=40))
def test_no_sequence_makes_an_illegal_layout_or_touches_what_is_in_use(steps: list[tuple[str, int, bool]]) -> None:
    held: dict[int, Seat] = {}

    def follow(shift: Shift) -> None:
        assert isinstance(shift.key, int)
        held[shift.key] = shift.target

    fleet = Slots([H100] * 2, ALIKE, follow=follow)
    for number, (name, leave, tidy) in enumerate(steps):
        ask = Ask({H100: name})
        found = fleet.best(ask)
        seat = None if found is None else found[1]
        if seat is None and (room := fleet.make_room(ask, 8)) is not None:
            seat = room[1]
        if seat is not None:
            assert seat.instance.start in openings(H100, fleet.layout(seat.device), name)
            fleet.put(number, seat, ask)
            held[number] = seat
        if tidy:
            fleet.tidy(1.0)
        if leave < len(held):
            key = sorted(held)[leave]
            assert fleet.leave(key) == held.pop(key)
        for device in range(2):
            assert verify_layout(H100, fleet.layout(device)) == []
            lies = [s.instance for s in held.values() if s.device == device]
            assert fleet.layout(device) == set(lies)
            assert len(lies) == len(set(lies))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_what_is_laid_out_is_repackable(names: list[str]) -> None:
    fleet = Slots([H100] * 2, ALIKE)
    counts: dict[str, int] = {}
    for number, name in enumerate(names):
        ask = Ask({H100: name})
        if (found := fleet.best(ask)) is not None:
            fleet.put(number, found[1], ask)
            counts[name] = counts.get(name, 0) + 1
            assert repackable(H100, 2, counts)


def lay(fleet: Slots, *pieces: tuple[str, int, str, int]) -> None:
    for key, device, name, start in pieces:
        fleet.put(key, Seat(device, Instance(start, name)), Ask({H100: name}))


def test_a_single_that_strands_a_slot_changes_with_a_double() -> None:
    fleet = Slots([H100] * 2, ALIKE)
    lay(fleet, ("four", 0, "4g.40gb", 0), ("two", 0, "2g.20gb", 4), ("single", 0, "1g.10gb", 6))
    lay(fleet, ("large", 1, "4g.40gb", 0))
    (shift,) = fleet.tidy(5.0)
    assert shift.key == "single"
    assert shift.target.device == 1
    assert fleet.tidy(5.0) == []


def test_room_for_a_whole_device_takes_rounds_of_moves() -> None:
    fleet = Slots([H100] * 3, ALIKE)
    lay(fleet, ("a", 0, "2g.20gb", 0), ("b", 0, "1g.10gb", 4), ("c", 1, "4g.40gb", 0), ("d", 2, "3g.40gb", 0))
    lay(fleet, ("e", 2, "2g.20gb", 4))
    room = fleet.make_room(Ask({H100: "7g.80gb"}), 8)
    assert room is not None
    shifts, seat = room
    assert len(shifts) == 2
    assert fleet.layout(seat.device) == set()


def test_moves_that_do_not_help_change_nothing() -> None:
    fleet = Slots([H100] * 2, ALIKE)
    lay(fleet, ("a", 0, "4g.40gb", 0), ("b", 0, "3g.40gb", 4), ("c", 1, "3g.40gb", 0))
    before = fleet.layout(0), fleet.layout(1)
    assert fleet.make_room(Ask({H100: "7g.80gb"}), 8) is None
    assert (fleet.layout(0), fleet.layout(1)) == before
