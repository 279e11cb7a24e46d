"""Who may be moved so that another fits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from tangram.core.plans import Desired
from tangram.core.replica import Phase, Replica

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
