"""How a Slice is given to a process, by mechanism: what it finds in its environment and what holds it.

`settings` is the one entry; each mechanism is a module with a function of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from packer.inventory import Device
from tangram.node.backend import StartError
from tangram.node.mechanisms import timeslice, virtual
from tangram.node.mechanisms.slices import SliceSettings

__all__ = ["SliceSettings", "settings"]

_MECHANISMS: Final[Mapping[str, Callable[[Sequence[Device], int], SliceSettings]]] = {
    "timeslice": timeslice.settings,
    "virtual": virtual.settings,
}


def settings(mechanism: str, devices: Sequence[Device], compute: int) -> SliceSettings:
    """Settings of a Slice with `compute` percent of each Device; StartError for a mechanism that is not there."""
    try:
        give = _MECHANISMS[mechanism]
    except KeyError:
        known = " or ".join(sorted(_MECHANISMS))
        raise StartError(f"slice.mechanism {mechanism!r} has no processes on this machine; use {known}") from None
    return give(devices, compute)
