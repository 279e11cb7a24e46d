"""MIG on 128 devices under churn at 95% of the memory slots: accepted arrivals beside an oracle that repacks at will.

The oracle holds a multiset of profiles; an arrival is accepted if the multiset still fits 128 devices when everything
may be laid out anew (solved exactly over the patterns of a device). It is not a policy: nobody can repack instances
that are in use. Every layout is re-checked from the table after every change.
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from random import Random
from statistics import mean
from typing import Any, Final

from packer.mig import GEOMETRIES, MigFleet, repackable, verify_layout

MODEL: Final = "H100-80"
DEVICES: Final = 128
RHO: Final = 0.95
MOST: Final = 16
"""Moves for one arrival."""
#: Weights of 1g, 1g double, 2g, 3g, 4g, 7g.
MIXES: Final = {"uniform": (1, 1, 1, 1, 1, 1), "large": (1, 1, 2, 3, 3, 3), "small": (6, 3, 3, 1, 1, 0.2)}


def replay(weights: tuple[float, ...], seed: int, arrivals: int) -> tuple[float, float, int, float]:
    """(accepted share of the arrivals in percent, the oracle's, illegal layouts, moves per 1,000 arrivals)."""
    rng = Random(seed)
    profiles = GEOMETRIES[MODEL].profiles
    fleet = MigFleet(MODEL, DEVICES, {p.name: w for p, w in zip(profiles, weights, strict=True)})
    size = sum(w * p.size for p, w in zip(profiles, weights, strict=True)) / sum(weights)
    rate = RHO * 8 * DEVICES / size
    held: list[tuple[float, int, Any]] = []
    free: list[tuple[float, str]] = []
    counts: Counter[str] = Counter()
    now = 0.0
    asked = ours = best = 0
    illegal = moves = 0
    for number in range(arrivals):
        now += rng.expovariate(rate)
        while held and held[0][0] <= now:
            _, _, (device, instance) = heapq.heappop(held)
            fleet.free(device, instance)
            illegal += bool(_wrong(fleet.layout(device)))
        while free and free[0][0] <= now:
            counts[heapq.heappop(free)[1]] -= 1
        profile = rng.choices(profiles, weights)[0]
        leaves = now + rng.expovariate(1.0)
        placed = fleet.place(profile.name)
        if placed is None and (steps := fleet.make_room(profile.name, MOST)) is not None:
            moves += len(steps) if number >= arrivals // 4 else 0
            for step in steps:
                # The sibling is where its tenant is found from now on.
                i = next(i for i, h in enumerate(held) if h[2] == (step.source_device, step.source))
                held[i] = (held[i][0], held[i][1], (step.target_device, step.target))
                illegal += bool(_wrong(fleet.layout(step.target_device)))
            placed = fleet.place(profile.name)
        if placed is not None:
            illegal += bool(_wrong(fleet.layout(placed[0])))
            heapq.heappush(held, (leaves, number, placed))
        counts[profile.name] += 1
        fits = repackable(MODEL, DEVICES, counts)
        if fits:
            heapq.heappush(free, (leaves, profile.name))
        else:
            counts[profile.name] -= 1
        if number >= arrivals // 4:
            asked += 1
            ours += placed is not None
            best += fits
    return 100 * ours / asked, 100 * best / asked, illegal, 1000 * moves / asked


@lru_cache(maxsize=65_536)
def _wrong(layout: Any) -> tuple[str, ...]:
    return tuple(verify_layout(MODEL, layout))


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All mixes."""
    seeds, arrivals = options.seeds or 10, options.arrivals or 20_000
    mixes: dict[str, Any] = {}
    bars: dict[str, Any] = {}
    illegal = 0
    for name, weights in MIXES.items():
        runs = [replay(weights, seed, arrivals) for seed in range(seeds)]
        ours, oracle = mean(r[0] for r in runs), mean(r[1] for r in runs)
        illegal += sum(r[2] for r in runs)
        mixes[name] = {"accepted_percent": ours, "oracle_percent": oracle, "moves_per_1000": mean(r[3] for r in runs)}
        bars[f"{name}: behind the oracle (points)"] = {
            "value": round(oracle - ours, 3),
            "bar": 0.3,
            "met": oracle - ours <= 0.3,
        }
        say(f"{name:8} accepted {ours:6.2f}%  oracle {oracle:6.2f}%  moves {mixes[name]['moves_per_1000']:.1f}")
    bars["illegal layouts"] = {"value": illegal, "bar": 0, "met": illegal == 0}
    return {"seeds": seeds, "arrivals": arrivals, "mixes": mixes, "bars": bars}
