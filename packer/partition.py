"""MIG slices of an inventory: which GPU instance a slice gets, and the moves that empty slots for one.

A slice gets the smallest profile with its memory and compute, at a start whose slots are empty; instances in use are
never touched. Of the devices that have such a start those with fewer replicas of the group come first, then those of
nodes with fewer, then the start where the worth of what is left of the device loses least (`mig`, all profiles alike).

Where no slots are empty, instances in one window are moved elsewhere, each make-before-break: the window from which the
fewest and smallest have to go is tried first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from packer.fit import obstacles, windows
from packer.inventory import Inventory, MigInstance, Move, MovePlan, Placement, SliceRequest
from packer.mig import Geometry, capacity, choice, geometry_of
from packer.occupancy import DeviceTally, Occupancy

_WINDOWS = 48
"""Windows that are tried for one slice."""


def place_mig(occupancy: Occupancy, request: SliceRequest, shut: Collection[str] = ()) -> Placement | None:
    """Where the slice goes; None where it fits nowhere. Nothing is counted. Devices that are shut take nothing."""
    best: tuple[tuple[object, ...], Placement] | None = None
    for host in occupancy.nodes.values():
        able = [t for t in host.devices if t.device.id not in shut and not obstacles(t, request)]
        if len(able) < request.devices:
            continue
        ranked = sorted(((_rank(t, request), t) for t in able), key=lambda pair: pair[0])[: request.devices]
        rank = tuple(sum(r[i] for r, _ in ranked) for i in range(5))
        if best is None or rank < best[0]:
            instances = tuple(_start(t, request) for _, t in ranked)
            best = rank, _placement(request, [t for _, t in ranked], instances, rank[3])
    return None if best is None else best[1]


def room_mig(tally: DeviceTally, request: SliceRequest) -> int:
    """How many more slices like this the device's slots could take."""
    able = windows(tally, request)
    if not able:
        return 0
    return capacity(_geometry(tally).model, tally.layout, able[0].profile)


def make_room_mig(
    inventory: Inventory, request: SliceRequest, fixed: Collection[str] = (), most: int = 8
) -> MovePlan | None:
    """At most `most` moves of MIG slices after which the request, for one device, fits; None where none were found."""
    occupancy = Occupancy(inventory)
    if (placement := place_mig(occupancy, request)) is not None:
        return MovePlan((), placement)
    held = {p.request.id: p for p in inventory.placements}
    if request.devices > 1:
        return None
    options = sorted(_options(occupancy, held, request, frozenset(fixed), most), key=lambda o: o[:4])
    for _, _, _, _, tally, window, inside in options[:_WINDOWS]:
        moves: list[Move] = []
        for instance in inside:
            target = place_mig(occupancy, held[instance].request, (tally.device.id,))
            if target is None:
                break
            moves.append(Move(held[instance], target))
            _swap(occupancy, held[instance], target)
        else:
            if window in windows(tally, request) and not obstacles(tally, request):
                why = f"after {len(moves)} move{'s' if len(moves) != 1 else ''}"
                return MovePlan(
                    tuple(moves), Placement(request, tally.device.id, tally.device.node, why=why, mig=(window,))
                )
        for move in reversed(moves):
            _swap(occupancy, move.target, move.source)
    return None


def _swap(occupancy: Occupancy, source: Placement, target: Placement) -> None:
    occupancy.remove(source.request.id)
    occupancy.add(target)


def _options(
    occupancy: Occupancy, held: dict[str, Placement], request: SliceRequest, fixed: frozenset[str], most: int
) -> Iterator[tuple[int, int, int, int, DeviceTally, MigInstance, list[str]]]:
    """Windows, and who lies in each."""
    for tally in occupancy.devices.values():
        reasons = {o.reason for o in obstacles(tally, request)}
        if not reasons <= {"slots", "memory", "compute", "clients", "host-cpu", "host-memory"}:
            continue
        geometry = _geometry(tally)
        profile = geometry.profile_for(request.memory_mib, request.compute)
        if profile is None:
            continue
        for start in profile.starts:
            inside = []
            for instance in tally.requests:
                lies = held[instance].mig
                there = lies[held[instance].all_devices.index(tally.device.id)] if lies else None
                if there is None or _overlap(geometry, there, start, profile.size):
                    inside.append(instance)
            movable = all(i not in fixed and held[i].mig and held[i].request.devices == 1 for i in inside)
            if inside and movable and len(inside) <= most:
                size = sum(geometry.profile(held[i].mig[0].profile).size for i in inside)
                inside.sort(key=lambda i: -geometry.profile(held[i].mig[0].profile).size)
                yield len(inside), size, start, tally.free_compute, tally, MigInstance(start, profile.name), inside


def _overlap(geometry: Geometry, there: MigInstance, start: int, size: int) -> bool:
    return there.start < start + size and start < there.start + geometry.profile(there.profile).size


def _geometry(tally: DeviceTally) -> Geometry:
    geometry = geometry_of(tally.device.model, tally.device.memory_mib)
    assert geometry is not None
    return geometry


def _choice(tally: DeviceTally, request: SliceRequest) -> tuple[float, int, str]:
    geometry = _geometry(tally)
    profile = windows(tally, request)[0].profile
    alike = tuple((p.name, 1 / len(geometry.profiles)) for p in geometry.profiles)
    found = choice(geometry.model, tally.layout, profile, alike)
    assert found is not None
    return *found, profile


def _rank(tally: DeviceTally, request: SliceRequest) -> tuple[int, int, int, float, int]:
    """Less is better; no name in it."""
    loss, _, _ = _choice(tally, request)
    group = request.group
    return (
        int(tally.device.id in request.avoid),
        tally.groups[group],
        tally.host.groups[group],
        loss,
        tally.free_compute,
    )


def _start(tally: DeviceTally, request: SliceRequest) -> MigInstance:
    _, start, profile = _choice(tally, request)
    return MigInstance(start, profile)


def _placement(
    request: SliceRequest, tallies: list[DeviceTally], instances: tuple[MigInstance, ...], loss: float
) -> Placement:
    first, *more = (t.device.id for t in tallies)
    where = ", ".join(f"{i.profile} at slot {i.start}" for i in instances)
    return Placement(
        request,
        first,
        tallies[0].device.node,
        score=-float(loss),
        why=f"{where}: of the empty slots those that cost what is left the least",
        more_devices=tuple(more),
        mig=instances,
    )
