"""What placers are measured by: the pool that has no fragments, and what it refuses in the long run."""

import pytest

from benchmarks.packer.churn import Pool, expected, replay
from benchmarks.packer.data import Trace
from packer.bounds import zero_refusal
from packer.engine import Bay, Rack
from packer.mix import Shape

pytest.importorskip("scipy", reason="needs the extra 'solver'")

WHOLE, MOST, HOST = Shape(100, cpu_milli=1_000), Shape(81, cpu_milli=1_000), Shape(devices=0, cpu_milli=1_000)


def trace(*pods: Shape) -> Trace:
    return Trace("made up", tuple(Rack(64_000, 65_536, tuple(Bay("A") for _ in range(4))) for _ in range(5)), pods)


def erlang_b(servers: int, offered: float) -> float:
    refused = 1.0
    for n in range(1, servers + 1):
        refused = offered * refused / (n + offered * refused)
    return refused


@pytest.mark.parametrize(("load", "capacity"), [(0.5, 100.0), (0.9, 100.0), (1.2, 75.0)])
def test_alike_shapes_are_refused_as_erlang_says(load: float, capacity: float) -> None:
    found = expected(trace(WHOLE, HOST), load, capacity)
    assert found == pytest.approx(100 * erlang_b(int(20 * capacity / 100), 20 * load))


def test_a_long_run_of_the_pool_refuses_what_is_expected() -> None:
    alike = trace(WHOLE)
    run = replay(alike, Pool(alike, zero_refusal(alike.racks, alike.mix()), False), 0.9, 1, 30_000, None)
    assert run.refused == pytest.approx(expected(alike, 0.9, 100.0), rel=0.1)


def test_a_pool_that_chooses_keeps_its_last_room_from_those_that_waste_most() -> None:
    mixed = trace(WHOLE, MOST)
    bound = zero_refusal(mixed.racks, mixed.mix())
    for choosing in (False, True):
        pool = Pool(mixed, bound, choosing)
        for key in range(19):
            assert pool.place(WHOLE, key) is not None
        assert (pool.place(MOST, 19) is None) == choosing
        assert pool.place(HOST, 20) is not None
        if choosing:
            assert pool.place(WHOLE, 19) is not None
        assert pool.place(WHOLE, 21) is None
        pool.leave(19)
        assert pool.place(WHOLE, 22) is not None
