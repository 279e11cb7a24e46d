"""MIG on 128 devices under churn at 95% of the memory slots: accepted arrivals beside an oracle that repacks at will.

The oracle holds a multiset of profiles; an arrival is accepted if the multiset still fits 128 devices when everything
may be laid out anew (solved exactly over the patterns of a device). It is not a policy: nobody can repack instances
that are in use. What is refused lets later arrivals in, so that a policy may come out slightly ahead of it.

Ours places where least is lost, makes room by at most eight make-before-break moves where nothing fits, and before each
arrival carries out up to two moves that pay for themselves, as the running loop does when it has nothing else to do.
Every layout is re-checked from the table after every change.
"""

from __future__ import annotations

import argparse
import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from statistics import mean
from typing import Any, Final

from packer.defrag import LEAST_SLOTS
from packer.mig import GEOMETRIES, repackable, verify_layout
from packer.slots import Ask, Slots

MODEL: Final = "H100-80"
DEVICES: Final = 128
RHO: Final = 0.95
MOST: Final = 8
"""Moves that make room for one arrival."""
TIDY: Final = 2
"""Moves before an arrival that pay for themselves."""
#: Weights of 1g, 1g double, 2g, 3g, 4g, 7g.
MIXES: Final = {"uniform": (1, 1, 1, 1, 1, 1), "large": (1, 1, 2, 3, 3, 3), "small": (6, 3, 3, 1, 1, 0.2)}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run, after the warm-up."""

    accepted: float
    """Percent of the arrivals."""
    oracle: float
    illegal: int
    """Layouts, over the whole run."""
    room_moves: float
    """Per 1,000 arrivals, to make room."""
    tidy_moves: float
    """Per 1,000 arrivals, that paid for themselves."""


def replay(weights: tuple[float, ...], seed: int, arrivals: int) -> Outcome:
    """One run."""
    rng = Random(seed)
    profiles = GEOMETRIES[MODEL].profiles
    asks = {p.name: Ask({MODEL: p.name}) for p in profiles}
    fleet = Slots([MODEL] * DEVICES, {MODEL: {p.name: w for p, w in zip(profiles, weights, strict=True)}})
    size = sum(w * p.size for p, w in zip(profiles, weights, strict=True)) / sum(weights)
    rate = RHO * 8 * DEVICES / size
    held: list[tuple[float, int]] = []
    free: list[tuple[float, str]] = []
    counts: Counter[str] = Counter()
    now = 0.0
    asked = ours = best = illegal = room = tidied = 0

    def wrong(*devices: int) -> int:
        return sum(bool(_wrong(fleet.layout(d))) for d in devices)

    for number in range(arrivals):
        counted = number >= arrivals // 4
        now += rng.expovariate(rate)
        while held and held[0][0] <= now:
            illegal += wrong(fleet.leave(heapq.heappop(held)[1]).device)
        while free and free[0][0] <= now:
            counts[heapq.heappop(free)[1]] -= 1
        for _ in range(TIDY):
            if not (shifts := fleet.tidy(LEAST_SLOTS, pairs=False)):
                break
            tidied += len(shifts) * counted
            illegal += wrong(*(s.source.device for s in shifts), *(s.target.device for s in shifts))
        profile = rng.choices(profiles, weights)[0].name
        leaves = now + rng.expovariate(1.0)
        direct = fleet.best(asks[profile])
        seat = None if direct is None else direct[1]
        if seat is None and (made := fleet.make_room(asks[profile], MOST)) is not None:
            shifts, seat = made
            room += len(shifts) * counted
            illegal += wrong(*(s.source.device for s in shifts), *(s.target.device for s in shifts))
        if seat is not None:
            fleet.put(number, seat, asks[profile])
            illegal += wrong(seat.device)
            heapq.heappush(held, (leaves, number))
        counts[profile] += 1
        fits = repackable(MODEL, DEVICES, counts)
        if fits:
            heapq.heappush(free, (leaves, profile))
        else:
            counts[profile] -= 1
        if counted:
            asked += 1
            ours += seat is not None
            best += fits
    return Outcome(100 * ours / asked, 100 * best / asked, illegal, 1000 * room / asked, 1000 * tidied / asked)


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
        ours, oracle = mean(r.accepted for r in runs), mean(r.oracle for r in runs)
        illegal += sum(r.illegal for r in runs)
        mixes[name] = {
            "accepted_percent": ours,
            "oracle_percent": oracle,
            "behind_by_seed": [round(r.oracle - r.accepted, 3) for r in runs],
            "moves_per_1000_to_make_room": mean(r.room_moves for r in runs),
            "moves_per_1000_that_tidy": mean(r.tidy_moves for r in runs),
        }
        bars[f"{name}: behind the oracle (points)"] = {
            "value": round(oracle - ours, 3),
            "bar": 0.3,
            "met": oracle - ours <= 0.3,
        }
        say(
            f"{name:8} accepted {ours:6.2f}%  oracle {oracle:6.2f}%  moves to make room "
            f"{mixes[name]['moves_per_1000_to_make_room']:.1f}, to tidy {mixes[name]['moves_per_1000_that_tidy']:.1f}"
        )
    bars["illegal layouts"] = {"value": illegal, "bar": 0, "met": illegal == 0}
    return {"seeds": seeds, "arrivals": arrivals, "mixes": mixes, "bars": bars}
