"""Moves that let a request in where nothing fits: the library's entry to `exact` (small fleets) and `tenants` (large).

Every plan is ordered make-before-break: at no step is a device oversold, though each mover holds two slices while it
moves. On fleets of up to 16 devices the plan has the fewest moves there are; for a request for whole devices it empties
those that take the fewest (`clear`). On larger ones few moves of small slices are found by search. Slices of MIG are
moved for each other only (`partition`).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from packer.clear import clear
from packer.exact import least_moves
from packer.fit import check_request
from packer.inventory import Inventory, MovePlan, SliceRequest
from packer.partition import make_room_mig

if TYPE_CHECKING:
    from packer.fleet import Fleet
    from packer.mix import Mix

#: Devices up to which plans are exact.
SMALL: Final = 16


def make_room(
    inventory: Inventory,
    request: SliceRequest,
    *,
    fixed: Collection[str] = (),
    most: int = 8,
    mix: Mix | None = None,
) -> MovePlan | None:
    """A plan of at most `most` moves after which the request fits; None where none was found.

    `fixed` names Instances that may not be moved; `mix` is the demand to expect, by which larger fleets choose places.
    A request that fits as things lie gets a plan without moves.
    """
    return Search(inventory, fixed, mix).make_room(request, most)


class Search:
    """Looks for moves on one picture of the fleet, for one request after the other; nothing found is carried out."""

    def __init__(self, inventory: Inventory, fixed: Collection[str] = (), mix: Mix | None = None) -> None:
        # Slices of MIG lie in slots, which only they know how to change.
        self._pinned = {*fixed, *(p.request.id for p in inventory.placements if p.request.mechanism == "mig")}
        self._inventory, self._fixed, self._mix = inventory, fixed, mix
        self._fleet: Fleet | None = None

    def make_room(self, request: SliceRequest, most: int) -> MovePlan | None:
        """As the function `make_room`."""
        check_request(request)
        inventory = self._inventory
        if request.mechanism == "mig":
            return make_room_mig(inventory, request, self._fixed, most, self._mix)
        if len(inventory.devices) <= SMALL and request.devices == 1:
            return least_moves(inventory, request, self._pinned, most)
        if len(inventory.devices) <= SMALL and request.whole:
            return clear(inventory, request, self._pinned, most)
        from packer.fleet import Fleet

        # A search in vain leaves the fleet as it was, and the next one may use it.
        fleet = self._fleet or Fleet.of(inventory, mix=self._mix, fixed=self._pinned)
        found = fleet.make_room(request, most)
        self._fleet = fleet if found is None else None
        return found


def carry_out(inventory: Inventory, plan: MovePlan) -> Inventory:
    """The inventory once the plan is done."""
    held = {p.request.id: p for p in inventory.placements}
    for move in plan.moves:
        held[move.instance] = move.target
    return replace(inventory, placements=(*held.values(), plan.placement))
