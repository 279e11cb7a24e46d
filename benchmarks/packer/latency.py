"""Seconds a placement takes on one core, without moves: under churn on the trace's fleet and on a large one.

"churn" is the trace's fleet at 92% offered load: arrivals are timed, departures are not. "large" is 5,000 nodes of 8
devices filled with the trace's pods, then arrivals and departures. "scratch" builds an engine for the trace's fleet and
places all that fit. Prices are solved once before, as they are for a mix that stays. Times are CPU time of the one
thread that places, so that other work on the machine does not count; `wall_*` is the clock's.

"linked" has no bar: 1,000 nodes of 8 devices with NVLink in fours and PCIe switches in twos are filled from 30 to 70%
through `packer.fleet`, names and reasons included. A fifth of the requests are for two, four or eight whole devices.
"unlinked" is the same fleet without links.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any

from benchmarks.packer.data import Trace, load, load_of
from packer.adaptive import Adaptive
from packer.engine import Bay, Engine, Rack
from packer.fleet import Fleet
from packer.inventory import Device, Distance, Inventory, Node, SliceRequest
from packer.mix import Mix
from packer.tenants import Tenants


def churn(
    racks: tuple[Rack, ...], trace: Trace, fill: float, arrivals: int, seed: int
) -> tuple[list[float], list[float], float]:
    """(CPU seconds for each arrival, the clock's, CPU seconds to fill the fleet)."""
    rng = Random(seed)
    # Solves the prices, which are kept.
    Engine(racks, warm := Adaptive(trace.mix())).best(trace.pods[0])
    del warm
    started = time.thread_time()
    tenants = Tenants(Engine(racks, Adaptive(trace.mix())))
    goal = fill * 100 * sum(len(r.bays) for r in racks)
    used, key = 0, 0
    alive: list[int] = []
    while used < goal:
        shape = trace.pods[rng.randrange(len(trace.pods))]
        if tenants.place(shape, key) is not None:
            alive.append(key)
        used += load_of(shape)
        key += 1
    scratch = time.thread_time() - started
    taken: list[float] = []
    wall: list[float] = []
    for _ in range(arrivals):
        gone = rng.randrange(len(alive))
        alive[gone], alive[-1] = alive[-1], alive[gone]
        tenants.leave(alive.pop())
        shape = trace.pods[rng.randrange(len(trace.pods))]
        before, clock = time.thread_time(), time.perf_counter()
        placed = tenants.place(shape, key)
        taken.append(time.thread_time() - before)
        wall.append(time.perf_counter() - clock)
        if placed is not None:
            alive.append(key)
        key += 1
    return taken, wall, scratch


def with_links(linked: bool, nodes: int = 1_000, seed: int = 0) -> dict[str, float]:
    """Milliseconds for requests of one device and of several."""
    rng = Random(seed)
    devices = []
    for node, a in product(range(nodes), range(8)):
        others = [b for b in range(8) if b != a] if linked else []
        devices.append(
            Device(
                f"n{node}/{a}",
                f"n{node}",
                "G2",
                80_000,
                links={f"n{node}/{b}": 4 for b in others if a // 4 == b // 4},
                distances={f"n{node}/{b}": Distance.PIX if a // 2 == b // 2 else Distance.NODE for b in others},
            )
        )
    inventory = Inventory(tuple(Node(f"n{n}", 96_000, 393_216) for n in range(nodes)), tuple(devices))

    def request(number: int) -> SliceRequest:
        if rng.random() < 0.2:
            count = rng.choice((2, 4, 8))
            name, cpu = f"w{number}", 4_000 * count
            return SliceRequest(name, name, 8_000, compute=100, cpu_milli=cpu, devices=count, whole=True)
        memory, compute = rng.choice((8_000, 16_000, 40_000)), rng.choice((10, 25, 50))
        return SliceRequest(f"s{number}", f"s{number}", memory, compute=compute, cpu_milli=2_000)

    fleet = Fleet.of(inventory, mix=Mix.recent(request(-n) for n in range(400)))
    taken: dict[str, list[float]] = {"one": [], "several": []}
    given, number = 0, 0
    while given < 0.7 * 800 * nodes:
        asked = request(number)
        before = time.thread_time()
        placed = fleet.place(asked)
        spent = time.thread_time() - before
        if given > 0.3 * 800 * nodes:
            taken["several" if asked.devices > 1 else "one"].append(spent)
        given += asked.compute * asked.devices if placed is not None else 0
        number += 1
    return {
        f"{which} {name}": round(1000 * _quantile(times, q), 4)
        for which, times in taken.items()
        for name, q in (("p50", 0.5), ("p99", 0.99))
    }


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Both fleets."""
    trace = load(options.data, (options.trace or ["default"])[0])
    arrivals = options.arrivals or 5_000
    small, wall, scratch = churn(trace.racks, trace, 0.92, arrivals, 0)
    large_fleet = tuple(Rack(96_000, 393_216, tuple(Bay("G2") for _ in range(8))) for _ in range(5_000))
    large, _, _ = churn(large_fleet, trace, 0.3, arrivals, 0)
    figures = {
        "churn p50 (ms)": (1000 * _quantile(small, 0.5), 0.1),
        "churn p99 (ms)": (1000 * _quantile(small, 0.99), 1.0),
        "5,000 x 8 p99 (ms)": (1000 * _quantile(large, 0.99), 5.0),
        "from scratch (s)": (scratch, 2.0),
    }
    for name, (value, bar) in figures.items():
        say(f"{name:20} {value:8.3f}  bar {bar}")
    also = {name: with_links(name == "linked") for name in ("linked", "unlinked")}
    for name, found in also.items():
        say(f"{name:20} " + ", ".join(f"{what} {value:.3f} ms" for what, value in found.items()))
    bars = {n: {"value": round(v, 4), "bar": b, "met": v <= b} for n, (v, b) in figures.items()}
    return {
        "arrivals": arrivals,
        "wall_p50_ms": 1000 * _quantile(wall, 0.5),
        "wall_p99_ms": 1000 * _quantile(wall, 0.99),
        "ms": also,
        "bars": bars,
    }


def _quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))]
