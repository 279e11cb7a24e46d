"""`tangram pack FILE`: the placement of a file's models on its fleet, worked out and not carried out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packer.inventory import Device, Inventory, Placement
from tangram.cli.client import CommandError
from tangram.console import tables, tiles, units
from tangram.control.present import device_view
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
    devices = {d.id: d for d in packed.inventory.devices}
    return PackView(
        replicas=tuple(_replica(r, devices) for r in packed.replicas),
        devices=_devices(packed.inventory),
        room=dict(packed.room),
    )


def _replica(packed: packing.PackedReplica, devices: Mapping[str, Device]) -> PackedReplicaView:
    result = packed.result
    request = result.request
    return PackedReplicaView(
        model=packed.model,
        replica=packed.replica,
        device=result.device if isinstance(result, Placement) else None,
        devices=result.all_devices if isinstance(result, Placement) else (),
        spans=request.devices,
        memory=convert.guaranteed_mib(result, devices)
        if isinstance(result, Placement)
        else request.memory_mib * request.devices,
        compute=request.compute,
        why=result.why if isinstance(result, Placement) else str(result),
    )


def _devices(inventory: Inventory) -> tuple[DeviceView, ...]:
    held: dict[str, list[Placement]] = {d.id: [] for d in inventory.devices}
    for placement in inventory.placements:
        for device in placement.all_devices:
            held[device].append(placement)
    return tuple(device_view(d, held[d.id]) for d in inventory.devices)


def _compute(replica: PackedReplicaView) -> str:
    return units.compute(replica.compute, replica.spans) if replica.compute else units.NONE


def text(view: PackView, width: int | None) -> str:
    """The table, the tiles and what would still fit; without a width nothing is cut."""
    rows = [
        [r.replica, units.memory(r.memory), _compute(r), units.devices(r.devices) or "no place", r.why]
        for r in view.replicas
    ]
    parts = [tables.plain(["REPLICA", "MEMORY", "COMPUTE", "DEVICE", "WHY"], rows, width=width)]
    parts.append(tiles.draw(view.devices, tiles.of_pack(view), width or 80))
    parts.append(tables.plain(["MODEL", "WOULD STILL FIT"], [[m, str(n)] for m, n in view.room.items()]))
    refused = [r for r in view.replicas if r.device is None]
    if refused:
        parts.append("No place:\n" + "\n".join(f"  {r.replica}: {r.why}" for r in refused))
    return "\n\n".join(parts)
