"""The packer's entry: slice requests in, a `Placement` or a `NoFit` for each out.

A call is one batch against one evolving inventory: what an earlier request of the batch took is gone for the later
ones. The batch is placed largest first (by the larger of its shares of a whole device's compute and memory), since a
small slice still finds a place where a large one does not; requests of one call are therefore equals, and a caller
with priorities makes a call for each. A group's requests of one size keep their order.

Each request goes to the Device with the best score among those that it fits (see `score`). No request is refused that
fits some Device at its turn, and nothing is given back during a batch: what is refused fits no Device at the end
either, and a `NoFit` speaks of the inventory as the whole batch leaves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from packer.fit import check_request, obstacles, refuse, refuse_several
from packer.inventory import Alternative, Inventory, NoFit, Placement, SliceRequest
from packer.occupancy import DeviceTally, NodeTally, Occupancy
from packer.partition import place_mig, room_mig
from packer.score import Score, score, settle, signature

if TYPE_CHECKING:
    from packer.fleet import Fleet
    from packer.mix import Mix

_ALTERNATIVES: Final = 3
_INDEXED_FROM: Final = 64
"""Devices above which the indexed engine places."""


def place(inventory: Inventory, requests: Sequence[SliceRequest], *, mix: Mix | None = None) -> list[Placement | NoFit]:
    """A Placement or a NoFit for each request, in the order of the requests.

    With a mix (the demand to expect) places are chosen by the adaptive policy, which keeps what is left over useful for
    that demand; spreading a group's replicas still comes first. Fleets of more than 64 devices and requests for several
    devices always go that way, with what lies there and is asked now as the mix where none is given.

    Raises ValueError when a request makes no sense for any fleet, or its Instance is placed already.
    """
    for request in requests:
        check_request(request)
    occupancy = Occupancy(inventory)
    if any(r.mechanism == "mig" for r in requests):
        return _place_with_mig(occupancy, inventory, requests, mix)
    if mix is not None or len(inventory.devices) > _INDEXED_FROM or any(r.devices > 1 for r in requests):
        return _place_by_mix(occupancy, inventory, requests, mix)
    largest = _largest_mib(inventory)
    placed: dict[int, Placement] = {}
    for index in sorted(range(len(requests)), key=lambda i: (-_size(requests[i], largest), i)):
        if (placement := _place_one(occupancy, requests[index], largest)) is not None:
            placed[index] = placement
            occupancy.add(placement)
    return [placed.get(i) or refuse(occupancy.devices.values(), request) for i, request in enumerate(requests)]


def _place_with_mig(
    occupancy: Occupancy, inventory: Inventory, requests: Sequence[SliceRequest], mix: Mix | None
) -> list[Placement | NoFit]:
    """Slices of MIG first, the largest first of all, then the others on what is left."""
    largest = _largest_mib(inventory)
    others = [r for r in requests if r.mechanism != "mig"]
    wanted = [r for r in requests if r.mechanism == "mig"]
    placed: dict[str, Placement | NoFit] = {}
    for request in sorted(wanted, key=lambda r: -r.devices * _size(r, largest)):
        if (placement := place_mig(occupancy, request, mix)) is not None:
            occupancy.add(placement)
            placed[request.id] = placement
    inventory = replace(inventory, placements=tuple(occupancy.holders.values()))
    for request, result in zip(others, place(inventory, others, mix=mix) if others else (), strict=True):
        placed[request.id] = result
        if isinstance(result, Placement):
            occupancy.add(result)
    tallies = occupancy.devices
    return [placed.get(r.id) or (refuse if r.devices == 1 else refuse_several)(tallies.values(), r) for r in requests]


def _place_by_mix(
    occupancy: Occupancy, inventory: Inventory, requests: Sequence[SliceRequest], mix: Mix | None
) -> list[Placement | NoFit]:
    # Imported here: small fleets without a mix need no numpy.
    from packer.fleet import Fleet
    from packer.mix import Mix

    _refuse_twice(occupancy, requests)
    if mix is None or not mix.shapes:
        mix = Mix.recent([*(p.request for p in inventory.placements), *requests])
    return _place_on(occupancy, Fleet(inventory, mix), requests)


def _refuse_twice(occupancy: Occupancy, requests: Sequence[SliceRequest]) -> None:
    taken = set(occupancy.holders)
    for request in requests:
        if request.id in taken:
            held = occupancy.holders.get(request.id)
            where = f", on {held.device}" if held else ""
            raise ValueError(f"instance {request.id!r} is placed already{where}; release it first")
        taken.add(request.id)


def _place_on(occupancy: Occupancy, fleet: Fleet, requests: Sequence[SliceRequest]) -> list[Placement | NoFit]:
    found = fleet.place_all(requests)
    for placement in found:
        if placement is not None:
            occupancy.add(placement)
    return [p if p is not None else _refusal(occupancy, r) for r, p in zip(requests, found, strict=True)]


def _refusal(occupancy: Occupancy, request: SliceRequest) -> NoFit:
    return (refuse if request.devices == 1 else refuse_several)(occupancy.devices.values(), request)


class Placer:
    """Batch after batch against one evolving picture, as `place` places one: for plans of many batches.

    What it places counts from then on; `take` counts what was placed elsewhere.
    """

    def __init__(self, inventory: Inventory, mix: Mix | None = None) -> None:
        self._nodes, self._devices = inventory.nodes, inventory.devices
        self._mix = mix
        self._occupancy = Occupancy(inventory)
        self._fleet: Fleet | None = None

    def take(self, placement: Placement) -> None:
        """Count a Placement; ValueError when its Instance has one already."""
        self._occupancy.add(placement)
        if self._fleet is not None:
            self._fleet.take(placement)

    def holds(self, instance: str) -> bool:
        """Whether the Instance is counted."""
        return instance in self._occupancy.holders

    def room(self, request: SliceRequest, most: int) -> int:
        """How many Instances with this request would fit beside each other, as `room` says; counted up to `most`."""
        check_request(request)
        count = 0
        for node in self._occupancy.nodes.values():
            if count >= most:
                return most
            count += _node_room(node, request)
        return min(count, most)

    def place(self, requests: Sequence[SliceRequest]) -> list[Placement | NoFit]:
        """A Placement or a NoFit for each request, in the order of the requests; ValueError as `place` says."""
        for request in requests:
            check_request(request)
        occupancy = self._occupancy
        if self._mix is not None and self._mix.shapes and all(r.mechanism != "mig" for r in requests):
            _refuse_twice(occupancy, requests)
            if self._fleet is None:
                if not any(self.room(r, 1) for r in requests):
                    return [_refusal(occupancy, r) for r in requests]
                from packer.fleet import Fleet

                self._fleet = Fleet(self._inventory(), self._mix)
            return _place_on(occupancy, self._fleet, requests)
        found = place(self._inventory(), requests, mix=self._mix)
        for placement in found:
            if isinstance(placement, Placement):
                self.take(placement)
        return found

    def _inventory(self) -> Inventory:
        return Inventory(self._nodes, self._devices, tuple(self._occupancy.holders.values()))


def place_into(
    occupancy: Occupancy, request: SliceRequest, among: Sequence[DeviceTally] | None = None
) -> Placement | None:
    """A place for one slice in what a working copy has free, by the same score; for trials with many steps.

    The copy is not changed: `occupancy.add` takes the place. None where no Device has room. A caller who knows that no
    others have room for one slice names those to look at with `among`, in the inventory's order.
    """
    check_request(request)
    if request.mechanism == "mig":
        return place_mig(occupancy, request)
    if request.devices > 1:
        return _place_several(occupancy, request)
    return _place_one(occupancy, request, max(1, occupancy.largest_mib), among)


def room(inventory: Inventory, request: SliceRequest) -> int:
    """How many Instances with this request would fit, one beside the other, into what is free.

    Exact: alike slices fill each Device up to its scarcest quantity and each Node up to its host's.
    """
    check_request(request)
    return sum(_node_room(node, request) for node in Occupancy(inventory).nodes.values())


def _place_one(
    occupancy: Occupancy, request: SliceRequest, largest_mib: int, among: Sequence[DeviceTally] | None = None
) -> Placement | None:
    if (held := occupancy.holders.get(request.id)) is not None:
        raise ValueError(f"instance {request.id!r} is placed already, on {held.device}; release it first")
    ranked = [
        (score(tally, request, largest_mib), tally)
        for tally in (occupancy.devices.values() if among is None else among)
        # On a full fleet most fail here already.
        if tally.free_mib >= request.memory_mib
        and tally.free_compute >= request.compute
        and not obstacles(tally, request)
    ]
    if not ranked:
        return None
    best_value = max(s.value for s, _ in ranked)
    tied = [tally for s, tally in ranked if s.value == best_value]
    taken = tied[0] if len(tied) == 1 else settle(tied)
    best = next(s for s, tally in ranked if tally is taken)
    others = [(s, tally) for s, tally in ranked if tally is not taken]
    # A stable sort: equal scores stay in the inventory's order.
    others.sort(key=lambda pair: -pair[0].value)
    return Placement(
        request=request,
        device=taken.device.id,
        node=taken.device.node,
        score=best.value,
        why=_why(best, request, len(ranked)),
        alternatives=tuple(
            Alternative(t.device.id, s.value, s.why_not(best, request.group)) for s, t in others[:_ALTERNATIVES]
        ),
    )


def _place_several(occupancy: Occupancy, request: SliceRequest) -> Placement | None:
    """On the Node that has the best set: avoided devices last, spread, links, and then on the fullest."""
    found: list[tuple[tuple[int, ...], list[DeviceTally]]] = []
    for host in occupancy.nodes.values():
        able = [n for n, tally in enumerate(host.devices) if not obstacles(tally, request)]
        if len(able) < request.devices:
            continue
        avoided = [int(t.device.id in request.avoid) for t in host.devices]
        siblings = [t.groups[request.group] for t in host.devices]
        burden = [1_000 * a + s for a, s in zip(avoided, siblings, strict=True)]
        state = [(t.free_compute, t.free_mib) for t in host.devices]
        chosen = host.links.best(able, request.devices, burden, state)
        rank = (
            max(avoided[n] for n in chosen),
            sum(siblings[n] for n in chosen),
            host.groups[request.group],
            *(-s for s in host.links.strength(chosen)),
            len(able),
        )
        found.append((rank, [host.devices[n] for n in chosen]))
    if not found:
        return None
    least = min(rank for rank, _ in found)
    tied = [tallies for rank, tallies in found if rank == least]
    first, *more = tied[0] if len(tied) == 1 else min(tied, key=lambda ts: sorted(signature(t) for t in ts))
    why = f"{first.host.links.words([first.host.devices.index(t) for t in (first, *more)])} with room"
    return Placement(
        request, first.device.id, first.device.node, why=why, more_devices=tuple(t.device.id for t in more)
    )


def _why(best: Score, request: SliceRequest, candidates: int) -> str:
    lead = "the only device with room" if candidates == 1 else f"best of {candidates} devices with room"
    return f"{lead}: {best.why(request.group)}"


def _size(request: SliceRequest, largest_mib: int) -> float:
    return max(request.compute / 100, request.memory_mib / largest_mib)


def _largest_mib(inventory: Inventory) -> int:
    return max((d.usable_mib for d in inventory.devices if d.usable_mib > 0), default=1)


def _node_room(host: NodeTally, request: SliceRequest) -> int:
    rooms = [count for tally in host.devices if (count := _device_room(tally, request))]
    count = sum(rooms) // request.devices
    # So many Instances use no device more often than there are of them.
    while request.devices > 1 and sum(min(r, count) for r in rooms) < request.devices * count:
        count -= 1
    for free, wanted in (
        (host.free_cpu_milli, request.cpu_milli),
        (host.free_host_memory_mib, request.host_memory_mib),
    ):
        if free is not None and wanted:
            count = min(count, free // wanted)
    return count


def _device_room(tally: DeviceTally, request: SliceRequest) -> int:
    if obstacles(tally, request):
        return 0
    if request.whole:
        return 1
    count = min(tally.free_mib // request.memory_mib, tally.free_clients)
    if request.mechanism == "mig":
        count = min(count, room_mig(tally, request))
    return min(count, tally.free_compute // request.compute) if request.compute else count
