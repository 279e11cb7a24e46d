"""Layouts of MIG devices: the `Repartition` that comes before each start on GPU instances that must be made first.

A layout names every instance in use, whoever holds it and in whatever phase, and those that the start needs. To carry
it out is to destroy what it does not name, which nobody uses, and to create what is missing; slots in use never change.
A device is repartitioned start by start, in the order of the actions, so that each layout is legal on its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from packer.inventory import MigInstance, Placement
from tangram.core.plans import Action, Repartition, Start


def with_repartitions(actions: Sequence[Action], held: Iterable[Placement]) -> tuple[Action, ...]:
    """The actions with a Repartition before each start that needs one; `held` is who lies where before them."""
    layouts: dict[str, set[MigInstance]] = {}
    for placement in held:
        for device, instance in zip(placement.all_devices, placement.mig, strict=False):
            layouts.setdefault(device, set()).add(instance)
    found: list[Action] = []
    for action in actions:
        if isinstance(action, Start) and not action.again:
            placement = action.replica.placement
            for device, instance in zip(placement.all_devices, placement.mig, strict=False):
                layout = layouts.setdefault(device, set())
                layout.add(instance)
                why = f"{instance.profile} at slot {instance.start} for {action.replica.name}"
                found.append(Repartition(device, tuple(sorted(layout)), action.replica.model, why))
        found.append(action)
    return tuple(found)
