"""Room for several whole devices on small fleets: the moves that empty a set of devices of one node.

Every set of devices that could be emptied is a candidate; those with the fewest and smallest tenants come first, then
those that are linked best. A set's tenants move, the largest first, each to a place beside the set where it fits as
things lie then. Where no set can be emptied so, the sets that come first are tried with moves of others too: the exact
search for the fewest moves (`exact`) makes room for one tenant after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import combinations, islice
from math import comb
from typing import Final

from packer.exact import least_moves
from packer.fit import obstacles
from packer.inventory import Inventory, Move, MovePlan, Placement, SliceRequest
from packer.occupancy import DeviceTally, Occupancy
from packer.place import place_into
from packer.score import signature

_CURABLE: Final = {"occupied", "clients"}
_SETS: Final = 500
"""Sets of one node that are looked at."""
_TRIED: Final = 64
_TRIED_WITH_MOVES: Final = 4


def clear(inventory: Inventory, request: SliceRequest, fixed: Collection[str] = (), most: int = 8) -> MovePlan | None:
    """A plan of at most `most` moves after which a request for whole devices fits; None where none was found."""
    occupancy = Occupancy(inventory)
    if (placement := place_into(occupancy, request)) is not None:
        return MovePlan((), placement)
    sets = [s for _, s in sorted(_candidates(occupancy, request, fixed, most), key=lambda c: c[0])]
    for tried, further in ((_TRIED, False), (_TRIED_WITH_MOVES, True)):
        for chosen in islice(sets, tried):
            if (plan := _emptied(inventory, request, chosen, fixed, most, further)) is not None:
                return plan
    return None


def _candidates(
    occupancy: Occupancy, request: SliceRequest, fixed: Collection[str], most: int
) -> Iterator[tuple[tuple[object, ...], list[DeviceTally]]]:
    """(what makes it a bad choice, a set of devices that might be emptied); the least comes first."""
    for host in occupancy.nodes.values():
        able = [
            number
            for number, tally in enumerate(host.devices)
            if {o.reason for o in obstacles(tally, request)} <= _CURABLE
            and not any(i in fixed or r.devices > 1 for i, r in tally.requests.items())
        ]
        # The emptiest first, where there are too many sets to look at all.
        able.sort(key=lambda n: (len(host.devices[n].requests), host.devices[n].compute, host.devices[n].memory_mib))
        while len(able) > request.devices and comb(len(able), request.devices) > _SETS:
            able.pop()
        for numbers in combinations(able, request.devices):
            chosen = [host.devices[n] for n in numbers]
            leaving = sum(len(t.requests) for t in chosen)
            if leaving > most:
                continue
            size = sum(t.compute for t in chosen), sum(t.memory_mib for t in chosen)
            strength = (-part for part in host.links.strength(numbers))
            yield (leaving, *size, *strength, sorted(signature(t) for t in chosen)), chosen


def _emptied(
    inventory: Inventory,
    request: SliceRequest,
    chosen: list[DeviceTally],
    fixed: Collection[str],
    most: int,
    further: bool,
) -> MovePlan | None:
    """The plan that empties these devices, with moves of others where `further` says so."""
    shut = {t.device.id for t in chosen}
    now = replace(
        inventory, devices=tuple(replace(d, healthy=d.healthy and d.id not in shut) for d in inventory.devices)
    )
    leaving = [p for p in inventory.placements if p.device in shut]
    leaving.sort(key=lambda p: (-p.request.compute, -p.request.memory_mib, p.request.id))
    stay = {*fixed, *(p.request.id for p in leaving)}
    moves: list[Move] = []
    for placement in leaving:
        # Both hold their slices until the sibling is there.
        sibling = replace(placement.request, id=f"{placement.request.id} (sibling)")
        left = most - len(moves) - 1
        found = MovePlan((), p) if (p := place_into(Occupancy(now), sibling)) is not None else None
        if found is None and further and left > 0:
            found = least_moves(now, sibling, stay, left)
        if found is None or len(found.moves) > left:
            return None
        target = replace(found.placement, request=placement.request, why=f"moved to make room for {request.id}")
        steps = [*found.moves, Move(placement, target)]
        lies = {p.request.id: p for p in now.placements} | {m.instance: m.target for m in steps}
        now = replace(now, placements=tuple(lies.values()))
        moves += steps
    after = Occupancy(replace(inventory, placements=now.placements))
    host = after.nodes[chosen[0].device.node]
    numbers = [n for n, t in enumerate(host.devices) if t.device.id in shut]
    if any(obstacles(host.devices[n], request) for n in numbers):
        return None
    count = f"{len(moves)} move{'s' if len(moves) != 1 else ''}"
    first, *more = (host.devices[n].device for n in numbers)
    why = f"{host.links.words(numbers)}, after {count}"
    return MovePlan(
        tuple(moves), Placement(request, first.id, first.node, why=why, more_devices=tuple(d.id for d in more))
    )
