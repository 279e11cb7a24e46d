"""What would cure a refusal: moves of others, a smaller slice, or a bigger device."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from packer.fit import obstacles
from packer.inventory import Inventory, MovePlan, NoFit, SliceRequest
from packer.moves import make_room
from packer.occupancy import Occupancy


@dataclass(frozen=True, slots=True)
class Cures:
    """Each is None where it would not help."""

    moves: MovePlan | None = None
    smaller: SliceRequest | None = None
    """The same request with as much memory and compute as some allowed Device could give it now."""
    bigger: str | None = None
    """In words: what a Device would have to have at least."""

    def __str__(self) -> str:
        parts = []
        if self.moves is not None:
            count = len(self.moves.moves)
            parts.append(f"{count} move{'s' if count != 1 else ''} would make room on {self.moves.placement.device}")
        if self.smaller is not None:
            parts.append(f"a slice of {self.smaller.memory_mib:,} MiB and {self.smaller.compute}% would fit now")
        if self.bigger is not None:
            parts.append(self.bigger)
        return "; ".join(parts) or "only departures or more devices would help"


def cures(inventory: Inventory, refused: NoFit, *, fixed: Collection[str] = (), most: int = 8) -> Cures:
    """What would let the refused request in; `fixed` and `most` bound the moves as in `make_room`."""
    request = refused.request
    permanent = refused.permanent
    moves = None if permanent or most < 1 else make_room(inventory, request, fixed=fixed, most=most)
    bigger = None
    if any(r.reason in ("too-large", "too-many") for r in refused.refusals):
        such = f"{request.memory_mib:,} MiB usable and {request.compute}% compute"
        bigger = f"a device with {such} would take it"
        if request.devices > 1:
            bigger = f"a node with {request.devices} devices of {such} would take it"
    return Cures(moves, _smaller(inventory, request) if request.devices == 1 else None, bigger)


def _smaller(inventory: Inventory, request: SliceRequest) -> SliceRequest | None:
    best: SliceRequest | None = None
    for tally in Occupancy(inventory).devices.values():
        less = replace(
            request,
            memory_mib=min(request.memory_mib, max(tally.free_mib, 1)),
            memory_limit_mib=None,
            compute=min(request.compute, max(tally.free_compute, 0)),
        )
        if not obstacles(tally, less) and (best is None or _rank(less) > _rank(best)):
            best = less
    return best


def _rank(request: SliceRequest) -> tuple[int, int]:
    return request.memory_mib, request.compute
