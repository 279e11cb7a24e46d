"""Background defragmentation: moves that pay for themselves.

A move pays when what the mover's place is worth to the expected mix exceeds what its new place is worth by more than a
move costs: with the mover gone, the policy's cost of putting it back on the device where it was, less the cost of its
best place on another device, of its own node or another. The best such moves are done one after another (each changes
the worth of the next), make-before-break. Up to three are made before they pay: of two small slices that keep a whole
device from being whole, neither is worth moving alone.

Slices of MIG have a measure of their own, slots that the expected mix could use (`slots`): a single at the end of a
device that strands the slot behind it moves where it strands none, and two moves are made where neither pays alone.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from packer.inventory import Inventory, Move
from packer.partition import tidy_mig

if TYPE_CHECKING:
    from packer.fleet import Fleet
    from packer.mix import Mix

#: What a move must gain, in percent of a device: about what a small slice brings.
LEAST_GAIN: Final = 15.0
#: What a move of a MIG slice must gain, in slots that the expected mix could use.
LEAST_SLOTS: Final = 5.0
#: Moves that may have to be made before they pay together.
LONGEST: Final = 3
#: Movers weighed for one move.
WEIGHED: Final = 256


def defragment(
    inventory: Inventory,
    mix: Mix,
    *,
    fixed: Collection[str] = (),
    most: int = 2,
    least_gain: float = LEAST_GAIN,
) -> list[Move]:
    """At most `most` moves, in order, that gain more than `least_gain` each on average; empty where none do.

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
    while len(moves) < most and (run := _run(fleet, most - len(moves), least_gain)):
        moves += run
    return moves


def _run(fleet: Fleet, most: int, least_gain: float) -> list[Move]:
    """The shortest run of best moves that gains more than `least_gain` each on average; empty where none does."""
    run: list[Move] = []
    gained = 0.0
    while len(run) < min(most, LONGEST):
        best = fleet.best_move(WEIGHED)
        if best is None or best[0] <= 0:
            break
        gained += best[0]
        run.append(fleet.carry_out(best[1]))
        if gained > least_gain * len(run):
            return run
    return []
