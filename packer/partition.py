"""MIG slices of an inventory: which GPU instance a slice gets, the moves that empty slots for one, and tidying up.

A slice gets the smallest profile with its memory and compute, at a start whose slots are empty; instances in use are
never touched. Of the devices that have such a start those with fewer replicas of the group come first, then those of
nodes with fewer, then the start where the worth of what is left of the device loses least to the profiles that are
expected (`profile_weights`).

Where no slots are empty, `slots` looks for moves on a copy of the layouts; an `Occupancy` kept in step with them says
who fits where, host CPU and memory included, at every step. A slice of several devices has room made for it on one
node, one device after the other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from packer.fit import obstacles, windows
from packer.inventory import Inventory, MigInstance, Move, MovePlan, Placement, SliceRequest
from packer.mig import Geometry, capacity, choice, geometry_of
from packer.mix import Mix
from packer.occupancy import DeviceTally, Occupancy
from packer.score import signature
from packer.slots import Ask, Seat, Shift, Slots
from packer.words import slots_taken

_BACKGROUND = 0.1
"""Weight of all profiles alike beside those that are expected: what is not expected may come all the same."""
_CURABLE = {"slots", "memory", "compute", "clients", "host-cpu", "host-memory"}
_NEWCOMER = object()


def profile_weights(mix: Mix | None, geometry: Geometry) -> dict[str, float]:
    """What to expect on such a device, by profile; all profiles alike where the mix has no slices of MIG."""
    alike = {p.name: 1 / len(geometry.profiles) for p in geometry.profiles}
    expected: dict[str, float] = dict.fromkeys(alike, 0.0)
    for shape, weight in zip(mix.shapes, mix.weights, strict=True) if mix is not None else ():
        profile = geometry.profile_for(shape.memory_mib, shape.compute) if shape.mechanism == "mig" else None
        if profile is not None:
            expected[profile.name] += weight
    total = sum(expected.values())
    if not total:
        return alike
    return {p: (1 - _BACKGROUND) * w / total + _BACKGROUND * alike[p] for p, w in expected.items()}


def place_mig(occupancy: Occupancy, request: SliceRequest, mix: Mix | None = None) -> Placement | None:
    """Where the slice goes; None where it fits nowhere. Nothing is counted. `mix` is the demand to expect."""
    best: tuple[tuple[object, ...], Placement] | None = None
    for host in occupancy.nodes.values():
        able = [t for t in host.devices if not obstacles(t, request)]
        if len(able) < request.devices:
            continue
        ranked = sorted(((_rank(t, request, mix), t) for t in able), key=lambda pair: pair[0])[: request.devices]
        sums = [sum(column) for column in zip(*(r[:5] for r, _ in ranked), strict=True)]
        rank = (*sums, *(r[5] for r, _ in ranked))
        if best is None or rank < best[0]:
            instances = tuple(_start(t, request, mix) for _, t in ranked)
            best = rank, _placement(request, [t for _, t in ranked], instances, sums[3])
    return None if best is None else best[1]


def room_mig(tally: DeviceTally, request: SliceRequest) -> int:
    """How many more slices like this the device's slots could take."""
    able = windows(tally, request)
    if not able:
        return 0
    return capacity(_geometry(tally).model, tally.layout, able[0].profile)


def make_room_mig(
    inventory: Inventory,
    request: SliceRequest,
    fixed: Collection[str] = (),
    most: int = 8,
    mix: Mix | None = None,
) -> MovePlan | None:
    """At most `most` moves of MIG slices after which the request fits; None where none were found."""
    if (placement := place_mig(Occupancy(inventory), request, mix)) is not None:
        return MovePlan((), placement)
    if request.devices == 1:
        return _plan(_Board(inventory, mix, fixed), request, most)
    nodes = dict.fromkeys(d.node for d in inventory.devices)
    # Who makes way had better leave the node: else it may have to make way twice.
    tries = ((node, barred) for node in nodes for barred in (node, None))
    plans = (_plan(_Board(inventory, mix, fixed, barred=barred), request, most, node) for node, barred in tries)
    return min((p for p in plans if p is not None), key=lambda plan: len(plan.moves), default=None)


def tidy_mig(
    inventory: Inventory, mix: Mix | None, fixed: Collection[str], most: int, least: float
) -> tuple[list[Move], Inventory]:
    """At most `most` moves that gain more than `least` slots each, in order, and the inventory after them.

    Spread is kept: nobody moves to another node that holds a sibling, or to another device that does.
    """
    board = _Board(inventory, mix, fixed, apart=True)
    while len(board.moves) < most and board.slots.tidy(least, pairs=len(board.moves) + 1 < most):
        pass
    return board.moves, replace(inventory, placements=tuple(board.occupancy.holders.values()))


def _plan(board: _Board, request: SliceRequest, most: int, node: str | None = None) -> MovePlan | None:
    """Make room for one instance after the other, on this node if one is given."""
    seats: list[Seat] = []
    for number in range(request.devices):
        shut = {s.device for s in seats}
        ask = board.ask(request, node)
        found = board.slots.best(ask, shut)
        seat = None if found is None else found[1]
        if seat is None:
            room = board.slots.make_room(ask, most - len(board.moves), shut)
            if room is None:
                return None
            seat = room[1]
        board.slots.put((_NEWCOMER, number), seat, None)
        seats.append(seat)
    first, *more = (board.tallies[s.device].device for s in seats)
    count = len(board.moves)
    why = f"after {count} move{'s' if count != 1 else ''} that emptied its slots"
    placement = Placement(
        request,
        first.id,
        first.node,
        why=why,
        more_devices=tuple(d.id for d in more),
        mig=tuple(s.instance for s in seats),
    )
    return MovePlan(tuple(board.moves), placement)


class _Board:
    """An inventory's MIG devices as `Slots`, and an `Occupancy` that follows its moves."""

    def __init__(
        self,
        inventory: Inventory,
        mix: Mix | None,
        fixed: Collection[str] = (),
        apart: bool = False,
        barred: str | None = None,
    ) -> None:
        self.occupancy = Occupancy(inventory)
        self._apart = apart
        self._why = "moved: the slots it leaves are of more use" if apart else "moved to empty slots for another"
        held = self.occupancy.holders
        self.tallies = [
            t
            for t in self.occupancy.devices.values()
            if "mig" in t.device.mechanisms
            and geometry_of(t.device.model, t.device.memory_mib) is not None
            and all(r.mechanism == "mig" and held[i].mig for i, r in t.requests.items())
        ]
        self._index = {t.device.id: n for n, t in enumerate(self.tallies)}
        geometries = {g.model: g for t in self.tallies for g in [_geometry(t)]}
        ranked = sorted(range(len(self.tallies)), key=lambda n: signature(self.tallies[n]))
        order = [0] * len(ranked)
        for place, number in enumerate(ranked):
            order[number] = place
        self.slots = Slots(
            [_geometry(t).model for t in self.tallies],
            {m: profile_weights(mix, g) for m, g in geometries.items()},
            order,
            self._moved,
        )
        self.moves: list[Move] = []
        for instance in sorted(held, key=lambda i: [order[n] for n in self._numbers(held[i])]):
            placement = held[instance]
            numbers = self._numbers(placement)
            stays = instance in fixed or placement.request.devices > 1
            for number, seat in zip(numbers, placement.mig, strict=False):
                key = (instance, number) if stays else instance
                self.slots.put(key, Seat(number, seat), None if stays else self.ask(placement.request, barred=barred))

    def _numbers(self, placement: Placement) -> list[int]:
        known = [d for d in placement.all_devices if d in self._index]
        return [self._index[d] for d in known] if len(known) == len(placement.all_devices) else []

    def ask(self, request: SliceRequest, node: str | None = None, barred: str | None = None) -> Ask:
        """What a request needs: of the devices of one node if one is given, and of none of a barred node."""

        def standing(number: int, reasons: Collection[str]) -> tuple[int, ...] | None:
            tally = self.tallies[number]
            if tally.device.node == barred or node not in (None, tally.device.node):
                return None
            if not {o.reason for o in obstacles(tally, request)} <= {*reasons}:
                return None
            lies = self.occupancy.holders.get(request.id)
            here = lies is not None and tally.device.id in lies.all_devices
            beside = lies is not None and tally.device.node == lies.node
            on_device = tally.groups[request.group] - here
            on_node = tally.host.groups[request.group] - beside
            avoided = tally.device.id in request.avoid
            if self._apart and (on_device or avoided or (on_node and not beside)):
                return None
            return int(avoided), on_device, on_node

        profiles: dict[str, str] = {}
        for tally in self.tallies:
            geometry = _geometry(tally)
            if (profile := geometry.profile_for(request.memory_mib, request.compute)) is not None:
                profiles[geometry.model] = profile.name
        return Ask(profiles, lambda n: standing(n, ()), lambda n: standing(n, _CURABLE))

    def _moved(self, shift: Shift) -> None:
        """Keep the occupancy in step with the slots; a move that is taken back is forgotten."""
        instance = str(shift.key)
        source = self.occupancy.remove(instance)
        seat = shift.target
        last = self.moves[-1] if self.moves else None
        if last is not None and last.instance == instance and self._lies(last.source, seat):
            self.moves.pop()
            self.occupancy.add(last.source)
            return
        device = self.tallies[seat.device].device
        target = Placement(source.request, device.id, device.node, why=self._why, mig=(seat.instance,))
        self.occupancy.add(target)
        self.moves.append(Move(source, target))

    def _lies(self, placement: Placement, seat: Seat) -> bool:
        return placement.device == self.tallies[seat.device].device.id and placement.mig == (seat.instance,)


def _geometry(tally: DeviceTally) -> Geometry:
    geometry = geometry_of(tally.device.model, tally.device.memory_mib)
    assert geometry is not None
    return geometry


def _choice(tally: DeviceTally, request: SliceRequest, mix: Mix | None) -> tuple[float, int, str]:
    geometry = _geometry(tally)
    profile = windows(tally, request)[0].profile
    found = choice(geometry.model, tally.layout, profile, tuple(sorted(profile_weights(mix, geometry).items())))
    assert found is not None
    return *found, profile


def _rank(
    tally: DeviceTally, request: SliceRequest, mix: Mix | None
) -> tuple[int, int, int, float, int, tuple[object, ...]]:
    """Less is better; no name in it."""
    loss, _, _ = _choice(tally, request, mix)
    group = request.group
    return (
        int(tally.device.id in request.avoid),
        tally.groups[group],
        tally.host.groups[group],
        loss,
        tally.free_compute,
        signature(tally),
    )


def _start(tally: DeviceTally, request: SliceRequest, mix: Mix | None) -> MigInstance:
    _, start, profile = _choice(tally, request, mix)
    return MigInstance(start, profile)


def _placement(
    request: SliceRequest, tallies: list[DeviceTally], instances: tuple[MigInstance, ...], loss: float
) -> Placement:
    first, *more = (t.device.id for t in tallies)
    parts = []
    for tally, instance in zip(tallies, instances, strict=True):
        left = slots_taken(_geometry(tally).model, tally.layout, tally.layout | {instance})
        parts.append(f"{instance.profile} at slot {instance.start} {left}")
    return Placement(
        request,
        first,
        tallies[0].device.node,
        score=-float(loss),
        why=f"of the empty slots those that spoil least for what is expected: {'; '.join(parts)}",
        more_devices=tuple(more),
        mig=instances,
    )
