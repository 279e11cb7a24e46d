"""Background defragmentation: moves that pay for themselves.

A move pays when what the mover's place is worth to the expected mix exceeds what its new place is worth by more than a
move costs: with the mover gone, the policy's cost of putting it back on the device where it was, less the cost of its
best place on another device, of its own node or another. The best such moves are done one after another (each changes
the worth of the next), make-before-break.

Slices of MIG have a measure of their own, slots that the expected mix could use (`slots`): a single at the end of a
device that strands the slot behind it moves where it strands none, and two moves are made where neither pays alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from packer.inventory import Inventory, Move
from packer.partition import tidy_mig

if TYPE_CHECKING:
    from packer.mix import Mix

#: What a move must gain, in percent of a device: about what a small slice brings.
LEAST_GAIN: Final = 15.0
#: What a move of a MIG slice must gain, in slots that the expected mix could use.
LEAST_SLOTS: Final = 5.0
#: Movers weighed in one call.
WEIGHED: Final = 256


def defragment(
    inventory: Inventory,
    mix: Mix,
    *,
    fixed: Collection[str] = (),
    most: int = 2,
    least_gain: float = LEAST_GAIN,
) -> list[Move]:
    """At most `most` moves, in order, each of which gains more than `least_gain`; empty where none does.

    `fixed` names Instances that may not be moved. Spread is kept: nobody moves to another node that holds a sibling, or
    to a device that does.
    """
    from packer.fleet import Fleet

    # What slots are worth, prices over levels do not tell: each kind of slice has its own measure.
    sliced = [p.request.id for p in inventory.placements if p.request.mechanism == "mig"]
    moves: list[Move] = []
    if sliced:
        moves, inventory = tidy_mig(inventory, mix, fixed, most, LEAST_SLOTS)
    if len(sliced) == len(inventory.placements):
        return moves
    fleet = Fleet.of(inventory, mix=mix, fixed={*fixed, *sliced})
    while len(moves) < most:
        best = fleet.best_move(WEIGHED)
        if best is None or best[0] <= least_gain:
            break
        moves.append(fleet.carry_out(best[1]))
    return moves
