"""What is kept from request to request is what would be worked out anew: speed changes no answer."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.adaptive import Adaptive
from packer.engine import Bay, Engine, Rack
from packer.leftover import Leftover
from packer.mix import Mix, Shape
from packer.tenants import Tenants

SHAPES = (
    Shape(compute=81, memory_mib=30_000, cpu_milli=3_000, host_memory_mib=1_000),
    Shape(compute=47, cpu_milli=12_000, host_memory_mib=2_000),
    Shape(compute=19, memory_mib=2_000, cpu_milli=1_000, host_memory_mib=100, mechanism="mps"),
    Shape(compute=30, memory_mib=9_000, mechanism="timeslice"),
    Shape(compute=100, devices=2, cpu_milli=8_000, host_memory_mib=4_000),
    Shape(compute=100, cpu_milli=8_000, host_memory_mib=4_000, device_models=frozenset({"T4"})),
    Shape(devices=0, cpu_milli=6_000, host_memory_mib=500),
)
MIX = Mix.of({s: 7.0 - i for i, s in enumerate(SHAPES)})
EITHER = frozenset({"mps", "timeslice"})


def racks(rng: Random) -> list[Rack]:
    return [
        Rack(
            rng.choice((32_000, 64_000, 1 << 50)),
            64_000,
            tuple(
                Bay(model, 40_000, rng.choice((100, 100, 50)), rng.choice((2, 48)), mechanisms=EITHER)
                for model in [rng.choice(("T4", "G2"))] * rng.choice((1, 2, 4))
            ),
        )
        for _ in range(10)
    ]


def anew(tenants: Tenants, policy: Adaptive) -> Engine:
    """An engine that has never seen anything but what lies there now."""
    engine = Engine(tenants.engine.racks, policy)
    for tenant in tenants.held.values():
        engine.take(tenant.shape, tenant.spot, tenant.key)
    return engine


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000_000))
def test_a_fleet_that_was_kept_up_to_date_places_as_one_built_anew(seed: int) -> None:
    rng = Random(seed)
    tenants = Tenants(Engine(racks(rng), Adaptive(MIX, scarcity=0.0)))
    for key in range(90):
        shape = rng.choice(SHAPES)
        if tenants.place(shape, key) is None:
            tenants.make_room(shape, 3)
        if tenants.held and rng.random() < 0.45:
            tenants.leave(rng.choice(sorted(tenants.held)))
        if key % 15:
            continue
        fresh = anew(tenants, Adaptive(MIX, scarcity=0.0))
        for probe in SHAPES:
            kept, made = tenants.engine.refresh(probe), fresh.refresh(probe)
            assert kept.cost.tolist() == pytest.approx(made.cost.tolist(), abs=1e-3)
            assert tenants.engine.best(probe) == fresh.best(probe)
            everyone = np.arange(len(fresh.racks))
            for mine, theirs in zip(tenants.engine.fits(kept, everyone), fresh.fits(made, everyone), strict=True):
                assert mine.tolist() == theirs.tolist()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1_000_000))
def test_nodes_settled_on_the_way_are_worth_what_nodes_settled_at_once_are(seed: int) -> None:
    rng = Random(seed)
    tenants = Tenants(Engine(racks(rng), Adaptive(MIX)))
    engine = tenants.engine
    price = np.array([rng.uniform(0, 80) for _ in MIX.shapes])
    scarce, dear = np.array([0, 4, 6]), np.array([20.0, 35.0, 5.0])
    kept = Leftover(engine, MIX, price, 0.2)
    kept.mark(scarce, dear)
    changed: set[int] = set()
    for key in range(60):
        placed = tenants.place(rng.choice(SHAPES), key)
        changed |= {placed.spot.node} if placed else set()
        if tenants.held and rng.random() < 0.4:
            changed.add(tenants.leave(rng.choice(sorted(tenants.held))).spot.node)
        if key % 10 or not changed:
            continue
        made = Leftover(engine, MIX, price, 0.2)
        made.mark(scarce, dear)
        fresh, nobody = np.array(sorted(changed)), np.zeros(0, np.int64)
        changed.clear()
        for probe in SHAPES:
            column = engine.column(probe)
            nodes, fits = engine.fits(column, np.arange(len(engine.racks)))
            if probe.devices == 1:
                rows, devices = fits.nonzero()
                mine = kept.with_one(column, nodes[rows], devices, fresh)
                theirs = made.with_one(column, nodes[rows], devices, nobody)
            else:
                mine = kept.with_several(column, nodes, fits, fresh)
                theirs = made.with_several(column, nodes, fits, nobody)
            fresh = nobody
            assert mine.tolist() == pytest.approx(theirs.tolist(), abs=1e-6)
        assert kept.worth.tolist() == pytest.approx(made.worth.tolist(), abs=1e-6)
        assert kept.value.tolist() == pytest.approx(made.value.tolist(), abs=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1_000_000))
def test_what_changed_since_is_known_whether_that_was_lately_or_long_ago(seed: int) -> None:
    rng = Random(seed)
    tenants = Tenants(Engine(racks(rng), Adaptive(MIX)))
    engine = tenants.engine
    touched: list[int] = []
    for key in range(rng.randrange(1, 150)):
        if tenants.held and rng.random() < 0.4:
            touched.append(tenants.leave(rng.choice(sorted(tenants.held))).spot.node)
        elif (tenant := tenants.place(rng.choice(SHAPES), key)) is not None:
            touched.append(tenant.spot.node)
    assert engine.version == len(touched)
    for since in range(len(touched) + 1):
        assert set(engine.changed(since).tolist()) == set(touched[since:])
    assert engine.changed(-1).tolist() == list(range(len(engine.racks)))
