"""Works out a placement without running anything: what `tangram pack fleet.yaml` shows.

Models are placed by priority, higher first; those of one priority are one batch for the packer. What a model gets is
its fixed count, else its minimum, and at least one replica, so that a model that may go to zero is shown too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from packer.inventory import Inventory, NoFit, Placement
from packer.place import place, room
from tangram.core.convert import slice_request
from tangram.spec import Model


@dataclass(frozen=True, slots=True)
class PackedReplica:
    model: str
    replica: str
    result: Placement | NoFit


@dataclass(frozen=True, slots=True)
class Packing:
    """A placement worked out and not carried out."""

    replicas: tuple[PackedReplica, ...]
    """In the order of the models given, each model's by number."""
    inventory: Inventory
    """With the slices that were placed."""
    room: Mapping[str, int]
    """By model: how many more of its replicas would fit if they alone were added."""

    @property
    def refused(self) -> tuple[PackedReplica, ...]:
        """Replicas that fit nowhere."""
        return tuple(r for r in self.replicas if isinstance(r.result, NoFit))


def pack(models: Sequence[Model], inventory: Inventory, replicas: Mapping[str, int] | None = None) -> Packing:
    """Place the models' replicas into what the inventory has free.

    `replicas` sets counts by model name; a model it leaves out gets its own. Raises ValueError where it names a model
    that is not given, or a negative count.
    """
    counts = _counts(models, replicas or {})
    results: dict[str, Placement | NoFit] = {}
    for priority in sorted({m.spec.priority for m in models}, reverse=True):
        requests = [
            slice_request(model, name)
            for model in models
            if model.spec.priority == priority
            for name in _names(model, counts[model.name])
        ]
        found = place(inventory, requests)
        results.update((request.id, result) for request, result in zip(requests, found, strict=True))
        inventory = replace(
            inventory, placements=inventory.placements + tuple(p for p in found if isinstance(p, Placement))
        )
    return Packing(
        replicas=tuple(
            PackedReplica(model.name, name, results[name])
            for model in models
            for name in _names(model, counts[model.name])
        ),
        inventory=inventory,
        room={model.name: room(inventory, slice_request(model, model.name)) for model in models},
    )


def unplaceable(model: Model, inventory: Inventory) -> NoFit | None:
    """Why no device could hold a replica of the model even if all were empty and well; None if one could."""
    nodes = tuple(replace(n, schedulable=True) for n in inventory.nodes)
    empty = Inventory(nodes, tuple(replace(d, healthy=True) for d in inventory.devices))
    outcome = place(empty, [slice_request(model, model.name)])[0]
    return outcome if isinstance(outcome, NoFit) else None


def _counts(models: Sequence[Model], given: Mapping[str, int]) -> dict[str, int]:
    names = [m.name for m in models]
    for name, count in given.items():
        if name not in names:
            known = ", ".join(names) or "none"
            raise ValueError(f"replicas: model {name!r} is not declared; declared are {known}")
        if count < 0:
            raise ValueError(f"replicas: {name}: {count} is negative; give 0 or more")
    return {m.name: given.get(m.name, _own_count(m)) for m in models}


def _own_count(model: Model) -> int:
    scaling = model.spec.scaling
    return max(1, scaling.min_replicas) if scaling.replicas is None else scaling.replicas


def _names(model: Model, count: int) -> list[str]:
    return [f"{model.name}-{number}" for number in range(1, count + 1)]
