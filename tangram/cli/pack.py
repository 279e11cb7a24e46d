"""`tangram pack FILE`: the placement of a file's models on its fleet, worked out and not carried out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packer.inventory import Inventory, NoFit, Placement
from tangram.cli.client import CommandError
from tangram.console import tables, tiles, units
from tangram.control.views import DeviceView, PackedReplicaView, PackView
from tangram.core import convert, packing
from tangram.spec import SpecError, load_documents


def counts_of(text: str | None) -> Mapping[str, int]:
    """What `--models a=3,b=2` says."""
    counts: dict[str, int] = {}
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, count = (p.strip() for p in part.partition("="))
        if not name or not (count.isascii() and count.isdigit()):
            raise CommandError(f"--models: {part.strip()!r} is not NAME=COUNT; write for example digits=3,faces=2", 2)
        if name in counts:
            raise CommandError(f"--models: {name!r} is given twice; give it once", 2)
        counts[name] = int(count)
    return counts


def pack(file: Path, counts: Mapping[str, int]) -> PackView:
    """Place the models of a file. Raises CommandError."""
    try:
        documents = load_documents(file)
    except SpecError as error:
        raise CommandError(str(error), 2) from None
    if documents.fleet is None:
        raise CommandError(f"{file}: declares no Fleet; pack needs one to place its models on", 2)
    try:
        packed = packing.pack(documents.models, convert.inventory(documents.fleet), counts)
    except ValueError as error:
        raise CommandError(f"--models: {str(error).removeprefix('replicas: ')}", 2) from None
    return PackView(
        replicas=tuple(map(_replica, packed.replicas)), devices=_devices(packed.inventory), room=dict(packed.room)
    )


def _replica(packed: packing.PackedReplica) -> PackedReplicaView:
    result = packed.result
    return PackedReplicaView(
        model=packed.model,
        replica=packed.replica,
        device=result.device if isinstance(result, Placement) else None,
        memory=result.request.memory_mib,
        compute=result.request.compute,
        why=str(result) if isinstance(result, NoFit) else result.why,
    )


def _devices(inventory: Inventory) -> tuple[DeviceView, ...]:
    held: dict[str, list[Placement]] = {d.id: [] for d in inventory.devices}
    for placement in inventory.placements:
        held[placement.device].append(placement)
    return tuple(
        DeviceView(
            id=d.id,
            node=d.node,
            model=d.model,
            memory_total=d.memory_mib,
            memory_reserve=d.reserve_mib,
            memory_requested=sum(p.request.memory_mib for p in held[d.id]),
            compute_requested=sum(p.request.compute for p in held[d.id]),
            clients=len(held[d.id]),
            max_clients=d.max_clients,
            mechanisms=tuple(sorted(d.mechanisms)),
            healthy=d.healthy,
            replicas=tuple(p.request.id for p in held[d.id]),
            links=dict(d.links),
        )
        for d in inventory.devices
    )


def text(view: PackView, width: int | None) -> str:
    """The table, the tiles and what would still fit; without a width nothing is cut."""
    rows = [
        [r.replica, units.memory(r.memory), f"{r.compute}%" if r.compute else units.NONE, r.device or "no place", r.why]
        for r in view.replicas
    ]
    parts = [tables.plain(["REPLICA", "MEMORY", "COMPUTE", "DEVICE", "WHY"], rows, width=width)]
    parts.append(tiles.draw(view.devices, tiles.of_pack(view), width or 80))
    parts.append(tables.plain(["MODEL", "WOULD STILL FIT"], [[m, str(n)] for m, n in view.room.items()]))
    refused = [r for r in view.replicas if r.device is None]
    if refused:
        parts.append("No place:\n" + "\n".join(f"  {r.replica}: {r.why}" for r in refused))
    return "\n\n".join(parts)
