"""Whether the GPUs of this machine are well: asked of NVML again and again, and believed with patience.

A GPU that NVML does not list, or cannot open ("GPU is lost"), twice in a row is unhealthy: it gets nothing new, and
whoever lies on it goes elsewhere. One that is listed again is well again. Where NVML itself cannot be used nothing is
concluded: a driver that is being replaced is no reason to move everything.

A GPU that reports a fault of its own (an XID, see `faults`) is unhealthy at once, and for as long as this controller
runs: whether a reset has mended it nobody tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from packer.inventory import Device
from tangram.node.discover import Discovery

#: Looks in a row at which a GPU must be missing.
PATIENCE: Final = 2


@dataclass(frozen=True, slots=True)
class Watched:
    """The GPUs as they were found, but for their health."""

    devices: tuple[Device, ...]
    missed: Mapping[str, int] = field(default_factory=dict)
    """By id: at how many looks in a row it was not there."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """By id: the XID of its last fault."""


def look(before: Watched, found: Discovery, faults: Mapping[str, int] = MappingProxyType({})) -> Watched:
    """What is to be made of another look; `faults` are those reported since the last."""
    had = {**before.faults, **faults}
    missed = before.missed
    new: tuple[Device, ...] = ()
    if found.usable:
        there = {d.id for d in found.devices}
        missed = {d.id: before.missed.get(d.id, 0) + 1 for d in before.devices if d.id not in there}
        known = {d.id for d in before.devices}
        new = tuple(d for d in found.devices if d.id not in known)
    well = (replace(d, healthy=missed.get(d.id, 0) < PATIENCE and d.id not in had) for d in (*before.devices, *new))
    return Watched(tuple(well), missed, had)


def changes(before: Watched, after: Watched) -> list[str]:
    """What has changed, one line each."""
    were = {d.id: d.healthy for d in before.devices}
    lines = []
    for device in after.devices:
        if device.id not in were:
            lines.append(f"{device.id} ({device.model}) was found")
        elif device.healthy != were[device.id]:
            fault = after.faults.get(device.id)
            gone = "not there any more" if fault is None else f"not well: it had a fault (XID {fault})"
            lines.append(f"{device.id} ({device.model}) is {'well again' if device.healthy else gone}")
    return lines
