"""For whom a full fleet makes no room, since it would be in vain.

Replicas of one model drain for another only where that gets the other something. It does not where not even the empty
fleet could hold one more of its replicas, nor where its starts fail: whoever drained would be started again, drained
for the next attempt, and so on for ever. Such a model keeps what it has and is placed in what is free; after an hour
the others make room for one attempt more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from packer.inventory import Inventory, NoFit
from packer.mix import Shape, shape_of
from packer.place import place
from tangram.core.plans import Attempts, Desired, Observed, Plan

#: After so many starts in a row that passed their deadline the others give nothing up, for so many seconds.
TRIES: Final = 2
TRUST_AGAIN_S: Final = 3600.0
#: Reasons of a refusal that no departure changes.
_NOT_FOR_ROOM: Final = frozenset({"model", "label", "mechanism", "too-large", "unhealthy"})


def in_vain(
    observed: Observed, desired: Mapping[str, Desired], outcome: Plan, empty: Inventory, now: float
) -> dict[str, str]:
    """Of the models that got less than they want in `outcome`, those for which nobody gives anything up; and why.

    The reason is empty where the refusal already says it: not even the `empty` fleet could hold it.
    """
    vain = {}
    hopeless: dict[Shape, bool] = {}
    for name in outcome.refusals.keys() | outcome.waiting.keys():
        if name not in desired:
            continue
        attempts = outcome.attempts.get(name) or observed.attempts.get(name, Attempts())
        if attempts.failed >= TRIES and now - attempts.failed_at < TRUST_AGAIN_S:
            vain[name] = outcome.waiting.get(name) or (
                f"{attempts.failed} starts in a row passed the progress deadline; the others make no room for the next"
            )
        elif name in outcome.refusals:
            refusal = outcome.refusals[name][0]
            shape = shape_of(refusal.request)
            if shape not in hopeless:
                hopeless[shape] = _is_hopeless(refusal, empty)
            if hopeless[shape]:
                vain[name] = ""
    return vain


def _is_hopeless(refusal: NoFit, empty: Inventory) -> bool:
    """Whether not even the empty fleet, as well as it is now, could hold what was refused."""
    if refusal.request.devices > 1:
        return isinstance(place(empty, [refusal.request])[0], NoFit)
    return all(r.reason in _NOT_FOR_ROOM for r in refusal.refusals)
