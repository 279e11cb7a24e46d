"""MIG geometry and placement of profiles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.mig import GEOMETRIES, Instance, MigFleet, capacity, openings, repackable, verify_layout

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


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 5)), max_size=40))
def test_no_sequence_makes_an_illegal_layout_or_touches_what_is_in_use(steps: list[tuple[str, int]]) -> None:
    fleet = MigFleet(H100, 2, dict.fromkeys(NAMES, 1.0))
    held: list[tuple[int, Instance]] = []
    for name, leave in steps:
        placed = fleet.place(name)
        if placed is None and (moves := fleet.make_room(name)) is not None:
            for move in moves:
                held[held.index((move.source_device, move.source))] = (move.target_device, move.target)
            placed = fleet.place(name)
            assert placed is not None
        if placed is not None:
            held.append(placed)
        if leave < len(held):
            fleet.free(*held.pop(leave))
        for device in range(2):
            assert verify_layout(H100, fleet.layout(device)) == []
            assert fleet.layout(device) == {i for d, i in held if d == device}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_what_is_laid_out_is_repackable(names: list[str]) -> None:
    fleet = MigFleet(H100, 2, dict.fromkeys(NAMES, 1.0))
    counts: dict[str, int] = {}
    for name in names:
        if fleet.place(name) is not None:
            counts[name] = counts.get(name, 0) + 1
            assert repackable(H100, 2, counts)
