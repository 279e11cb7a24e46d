"""Sets of slices for 2 to 16 devices that an exact solver proves to fit, arriving one by one in random order.

The generator, complete: for a machine of n devices draw the device's memory from 24, 40 and 80 GiB (all devices alike)
and slices until their sum of memory passes 95% of the machine's: memory uniform from 5% to 60% of a device in whole
MiB, compute uniform from 5% to 50% in half of the sets and 0 in the others. Sets that CP-SAT cannot prove to fit the
empty machine are drawn anew. Arrivals are shuffled. An arrival that fits is placed by `place`; one that does not is let
in by `make_room` with at most 8 moves. Plans are re-checked from first principles. A set is left out where it is
proven, by looking at everything reachable, that at some arrival no ordered plan of at most 8 moves existed.

Times are CPU time of the process (the solver runs on one thread), so that other work on the machine does not count.

The least number of moves is, for each plan, the optimum of the static programme: a lower bound for ordered plans.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, Final

from packer.exact import fewest, provable, unreachable
from packer.inventory import Device, Inventory, Node, Placement, SliceRequest
from packer.moves import carry_out, make_room
from packer.place import place
from packer.verify import verify, verify_plan

SIZES: Final = (2, 4, 8, 16)


def draw(devices: int, rng: Random) -> tuple[Inventory, list[SliceRequest]]:
    """A machine and slices that provably fit it."""
    while True:
        memory = rng.choice((24, 40, 80)) * 1024
        inventory = Inventory((Node("n"),), tuple(Device(f"n/gpu-{i}", "n", "GPU", memory) for i in range(devices)))
        with_compute = rng.random() < 0.5
        slices: list[SliceRequest] = []
        total = 0
        while True:
            size = rng.randrange(memory // 20, memory * 6 // 10)
            if total + size > 0.95 * memory * devices:
                break
            total += size
            compute = rng.randrange(5, 51) if with_compute else 0
            slices.append(SliceRequest(f"r{len(slices)}", f"m{len(slices)}", size, compute=compute))
        if provable(inventory, slices):
            rng.shuffle(slices)
            return inventory, slices


def arrive(inventory: Inventory, slices: list[SliceRequest], moving: bool) -> dict[str, Any]:
    """Place one by one; figures of the run."""
    plain: list[float] = []
    with_moves: list[float] = []
    moves = least = plans = refused = 0
    impossible = False
    for request in slices:
        started = time.process_time()
        (result,) = place(inventory, [request])
        if isinstance(result, Placement):
            plain.append(time.process_time() - started)
            inventory = replace(inventory, placements=(*inventory.placements, result))
            continue
        plan = make_room(inventory, request) if moving else None
        with_moves.append(time.process_time() - started)
        if plan is None:
            refused += 1
            # From here no sequence of moves helps: proven, or not.
            impossible = impossible or (moving and unreachable(inventory, request))
            continue
        problems = verify_plan(inventory, plan)
        assert not problems, problems
        plans += 1
        moves += len(plan.moves)
        least += fewest(inventory, request) or 0
        inventory = carry_out(inventory, plan)
    assert not verify(inventory)
    return {
        "plain": plain,
        "with_moves": with_moves,
        "moves": moves,
        "least": least,
        "plans": plans,
        "refused": refused,
        "impossible": impossible,
    }


def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All sizes; `--seeds` sets of each."""
    count = options.seeds or 100
    sizes: dict[str, Any] = {}
    plain: list[float] = []
    moved: list[float] = []
    whole = sets = all_plans = above = 0
    for devices in SIZES:
        rng = Random(devices)
        greedy = complete = moves = plans = excluded = 0
        for _ in range(count):
            inventory, slices = draw(devices, rng)
            greedy += arrive(inventory, slices, moving=False)["refused"] == 0
            figures = arrive(inventory, slices, moving=True)
            complete += figures["refused"] == 0
            excluded += figures["refused"] > 0 and figures["impossible"]
            moves += figures["moves"]
            plans += figures["plans"]
            all_plans += figures["plans"]
            above += figures["moves"] - figures["least"]
            plain += figures["plain"]
            moved += figures["with_moves"]
        whole += complete
        sets += count - excluded
        sizes[str(devices)] = {
            "greedy_percent": 100 * greedy / count,
            "placed_percent": 100 * complete / max(1, count - excluded),
            "no_plan_exists": excluded,
            "moves_per_plan": moves / plans if plans else 0.0,
        }
        say(f"{devices:2} devices: {sizes[str(devices)]}")
    bars = {
        "sets placed whole (percent)": _bar(100 * whole / sets, 100, at_least=True),
        "moves above the least (mean)": _bar(above / all_plans if all_plans else 0.0, 1.0),
        "p99 with moves (s)": _bar(_p99(moved), 2.0),
        "greatest without moves (s)": _bar(max(plain), 0.1),
    }
    return {"sets": sets, "sizes": sizes, "bars": bars}


def _bar(value: float, bar: float, at_least: bool = False) -> dict[str, Any]:
    return {"value": round(value, 5), "bar": bar, "met": value >= bar if at_least else value <= bar}


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))] if values else 0.0
