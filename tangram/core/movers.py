"""Who may be moved so that another fits, and who may leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

from packer.inventory import Inventory, SliceRequest
from packer.place import room
from tangram.core.plans import Desired
from tangram.core.replica import Phase, Replica, victims

#: Seconds a replica must have been ready before it may be moved.
RESIDENCY_S: Final = 20.0


def movers(
    replicas: Sequence[Replica], desired: Mapping[str, Desired], touched: Collection[str], now: float
) -> tuple[dict[str, Replica], dict[str, Replica]]:
    """Replicas that may move, and those that may once they have been ready for a while.

    Both are of the revision wanted and not in the way of anything else; those `touched` by other actions stay.
    """
    movable: dict[str, Replica] = {}
    young: dict[str, Replica] = {}
    for r in replicas:
        wanted = desired.get(r.model)
        if r.name in touched or wanted is None or r.revision != wanted.model.revision:
            continue
        if r.phase is Phase.READY:
            (movable if now - r.since >= RESIDENCY_S else young)[r.name] = r
    return movable, young


def whose_leaving_helps(
    old: Sequence[Replica], request: SliceRequest, inventory: Inventory, *, divided: bool
) -> Replica | None:
    """Of a model's replicas the one to go first so that a slice fits; None where it would not fit without all of them.

    Where a full fleet is `divided`, others make room for a model that has nothing: then it must fit the empty fleet.
    Who lies on a device that is not well makes no room by leaving.
    """
    well = {d.id for d in inventory.devices if d.healthy}
    able = victims([r for r in old if well.issuperset(r.placement.all_devices)], len(old))

    def fits(gone: Collection[Replica]) -> bool:
        names = {r.name for r in gone}
        left = tuple(p for p in inventory.placements if p.request.id not in names)
        return room(replace(inventory, placements=left), request) > 0

    if not able or not (fits(able) or (divided and room(replace(inventory, placements=()), request))):
        return None
    return next((r for r in able if fits([r])), able[0])
