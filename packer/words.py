"""Why a place was taken and others were not, in words and units that an operator reads.

What a place costs is told as useful room: how much less the expected demand could find on the node afterwards, in GPUs
(1.00 GPU is a whole empty device, all of it of use). A slice mostly costs about its own size; it costs more where it
spoils room that something else would need, less where it fills a gap that nothing else would use.
"""

from __future__ import annotations

from packer.mig import GEOMETRIES, Layout, capacity, stranded

_ALIKE = 0.5
"""Percent of a device below which two costs are told as the same."""


def replicas(count: int, group: str) -> str:
    """Such as "2 replicas of digits"."""
    return f"{count} replica{'s' if count > 1 else ''} of {group}"


def gpus(percent: float) -> str:
    """Percent of a device as GPUs."""
    return f"{max(percent, 0.0) / 100:.2f} GPU"


def taken(candidates: int, cost: float, memory_left: int, compute_left: int, apart_from: str = "") -> str:
    """Why the engine's place was taken; the cost in percent of a device.

    `apart_from` names the group of which other nodes have replicas and this one has none.
    """
    among = f" among those without a replica of {apart_from}" if apart_from else ""
    lead = "the only node with room" if candidates == 1 else f"of {candidates} nodes with room it costs least{among}"
    return (
        f"{lead}: {gpus(cost)} of room that expected demand could use; "
        f"leaves {memory_left:,} MiB and {compute_left}% compute free on the device"
    )


def several_taken(candidates: int, cost: float, joined: str, apart_from: str = "") -> str:
    """The same for several devices of a node, whose links are said by `joined`."""
    among = f" without a replica of {apart_from}" if apart_from else ""
    lead = "on the only node with room" if candidates == 1 else f"linked best of {candidates} nodes with room{among}"
    return f"{joined}, {lead}: {gpus(cost)} of room that expected demand could use"


def passed_over(cost: float, least: float, siblings: int, group: str, avoided: bool) -> str:
    """Why another of the engine's places was not taken; costs in percent of a device."""
    if avoided:
        return "a start there failed lately"
    if siblings:
        return f"its node holds {replicas(siblings, group)} already; it would cost {gpus(cost)} of useful room"
    if cost - least < _ALIKE:
        return f"would cost as much, {gpus(cost)} of useful room"
    return f"would cost {gpus(cost)} of useful room, {gpus(cost - least)} more"


def slots_taken(model: str, before: Layout, after: Layout) -> str:
    """What a MIG instance leaves of its device."""
    wasted = stranded(model, after) - stranded(model, before)
    room = [
        f"{count} x {profile.name}"
        for profile in reversed(GEOMETRIES[model].profiles)
        if (count := capacity(model, after, profile.name))
    ]
    text = f"leaves room for {' or '.join(room)}" if room else "fills the device"
    return text + (f", {wasted} slot{'s' if wasted > 1 else ''} out of reach" if wasted > 0 else "")
