"""How a Slice is given to a process, by mechanism: what it finds in its environment and what holds it.

    virtual     cores that stand for the compute; the Instance keeps to them itself, or a cgroup holds it
    timeslice   the GPUs alone, by UUID; nothing is held
    mps         a control daemon for each GPU, started before the first process that wants it and ended after the last
    mig         a GPU instance of its own, made before the process starts

`settings` says what is known without looking at a device; `prepare` has the device give the slice first, and blocks
while it does. Both raise StartError with what is in the way.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from packer.inventory import Device, MigInstance
from packer.mig import geometry_of
from tangram.node.backend import StartError
from tangram.node.mechanisms import mig, timeslice, virtual
from tangram.node.mechanisms.mps import CONTROL, PIPES, Mps, MpsError
from tangram.node.mechanisms.slices import GivenSlice, SliceSettings

__all__ = ["GivenSlice", "Mechanisms", "SliceSettings", "offered"]

_KNOWN: Final = ("mig", "mps", "timeslice", "virtual")
#: Compute capability from which MPS holds its processes to memory and compute (Volta).
_MPS_FROM: Final = (7, 0)


class Mechanisms:
    """Those of one machine. `nvml` stands in for the module pynvml, `control` for the program of MPS."""

    def __init__(self, state_dir: Path, *, nvml: Any = None, control: str = CONTROL) -> None:
        self._nvml = nvml
        self._mps = Mps(state_dir, control)

    def settings(self, given: GivenSlice) -> SliceSettings:
        """What the process needs, as far as it is known without its device: of MIG nothing is."""
        match given.mechanism:
            case "virtual":
                return virtual.settings(given)
            case "timeslice":
                return timeslice.settings(given)
            case "mps":
                return self._mps.settings(given)
            case "mig":
                return SliceSettings()
        raise StartError(
            f"slice.mechanism {given.mechanism!r} has no processes on this machine; use {', '.join(_KNOWN)}"
        )

    def prepare(self, given: GivenSlice, layouts: Mapping[str, Collection[MigInstance]]) -> SliceSettings:
        """Have the devices give the slice. `layouts` are, by device, the GPU instances that anybody holds.

        One call at a time for a device.
        """
        if given.mechanism == "mig":
            return self._cut(given, layouts)
        if given.mechanism == "mps":
            for device in given.devices:
                try:
                    self._mps.start(device.id)
                except MpsError as error:
                    raise StartError(str(error)) from None
        return self.settings(given)

    def daemons(self) -> Sequence[str]:
        """Ids of devices for which a daemon of MPS was started once and not ended since."""
        return self._mps.daemons()

    def end_daemon(self, device: str) -> None:
        """End the device's daemon; nothing where it does not run. Raises MpsError."""
        self._mps.stop(device)

    def is_held(self, env: Mapping[str, str], pids: Collection[int]) -> bool:
        """Whether a process with this environment is held to its slice: by MPS it is if one of these is attached."""
        if PIPES not in env:
            return True
        try:
            return not set(self._mps.attached(Path(env[PIPES]))).isdisjoint(pids)
        except MpsError:
            return False

    def _cut(self, given: GivenSlice, layouts: Mapping[str, Collection[MigInstance]]) -> SliceSettings:
        shown = []
        for device, instance in zip(given.devices, given.mig, strict=True):
            layout = {*layouts.get(device.id, ()), instance}
            try:
                made = mig.repartition(device, layout, self._nvml, needs={instance: given.memory_mib})
                shown.append(made[instance])
            except (mig.MigError, ImportError) as error:
                raise StartError(str(error)) from None
        return mig.settings(shown)


def offered(device: Device, *, cut: bool, capability: tuple[int, int], control: str = CONTROL) -> frozenset[str]:
    """What a GPU of this machine offers; one that is `cut` by MIG runs nothing as a whole."""
    if cut:
        return frozenset({"mig"}) if geometry_of(device.model, device.memory_mib) is not None else frozenset()
    has_mps = capability >= _MPS_FROM and shutil.which(control) is not None
    return frozenset({"timeslice", "mps"}) if has_mps else frozenset({"timeslice"})
