"""Virtual devices: compute is a share of the CPU cores declared for the device, memory is host memory.

The share is held by a cgroup (v2) of the Instance's own with `cpu.max`, where the controller may make one: some
cgroup above or at its own is writable and gives its children the cpu controller. Elsewhere the Instance gets
TANGRAM_CPU_CORES in its environment, and the embedded server keeps to it by itself. When the share changes while it
runs, the cgroup's limit is changed, or the file that TANGRAM_CPU_FILE names.

A process is put into its cgroup before its program begins, by a line of shell that then execs the program, so that
no child escapes. The limit is set when the Instance is ready first: loading a model is no use of the device's compute.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Container
from pathlib import Path
from typing import Final

from tangram.core.convert import cores
from tangram.node.mechanisms.slices import GivenSlice, SliceSettings
from tangram.node.processes import CPU_CORES

_log = logging.getLogger(__name__)

_MOUNT: Final = Path("/sys/fs/cgroup")
#: Short, so that a process that has used its share waits for little; longer for shares too small for the kernel.
_PERIOD_US: Final = 20_000
_LONG_PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1000
_ENTER: Final = f'echo 0 > "$0/cgroup.procs" || export {CPU_CORES}="$1"; shift; exec "$@"'


def settings(given: GivenSlice) -> SliceSettings:
    """Cores for the slice's percent of the compute of all its devices together."""
    return SliceSettings(cpu_cores=cores(given.devices, given.compute))


def cpu_max(limit: float) -> str:
    """What to write to a cgroup's cpu.max: microseconds of CPU in how many microseconds."""
    period = _PERIOD_US if limit * _PERIOD_US >= _LEAST_QUOTA_US else _LONG_PERIOD_US
    return f"{max(_LEAST_QUOTA_US, round(limit * period))} {period}"


def find_parent(mount: Path = _MOUNT, own: Path = Path("/proc/self/cgroup")) -> Path | None:
    """The nearest cgroup, from this process's own upwards, in which groups with a CPU limit can be made."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    relative = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if relative is None or ".." in relative:
        return None
    group = mount / relative.lstrip("/")
    for candidate in [group, *group.parents]:
        if not candidate.is_relative_to(mount):
            return None
        try:
            controllers = (candidate / "cgroup.subtree_control").read_text().split()
        except OSError:
            continue
        if "cpu" in controllers and os.access(candidate, os.W_OK) and os.access(candidate / "cgroup.procs", os.W_OK):
            return candidate
    return None


class CpuBudgets:
    """The files that tell Instances of a changed share, `cpu/INSTANCE` in the state directory."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "cpu"

    def begin(self, instance: str) -> Path:
        """Where a new process of the Instance will be told; what a former one was told is gone."""
        self.remove(instance)
        return self._folder / instance

    def write(self, instance: str, cores: float) -> None:
        """Tell it."""
        part = self._folder / f"{instance}.part"
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            part.write_text(f"{cores:g}")
            part.replace(self._folder / instance)
        except OSError as error:
            _log.warning("%s is not told that it may use %g cores: %s", instance, cores, error)

    def remove(self, instance: str) -> None:
        """Drop the file of an Instance that is gone."""
        with contextlib.suppress(OSError):
            (self._folder / instance).unlink(missing_ok=True)


class CpuGroups:
    """The cgroups of one installation's Instances, `tangram-HASH-INSTANCE` in `parent`; without a parent, none."""

    def __init__(self, state_dir: Path, parent: Path | None) -> None:
        self._parent = parent
        self._prefix = f"tangram-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]}-"

    def enter(self, instance: str, cores: float) -> tuple[str, ...]:
        """What to put before an argv so that the process starts in a cgroup of its own; empty where none can be."""
        if self._parent is None:
            return ()
        group = self._path(self._parent, instance)
        try:
            group.mkdir(exist_ok=True)
            # What a former limit was must not slow the new start.
            (group / "cpu.max").write_text(f"max {_PERIOD_US}")
        except OSError as error:
            _log.warning("no cgroup for %s, its CPU budget is its own to keep: %s", instance, error)
            return ()
        return ("/bin/sh", "-c", _ENTER, str(group), f"{cores:g}")

    def limit(self, instance: str, cores: float) -> None:
        """Hold the Instance to its share from now on, if it has a cgroup."""
        if self._parent is None or not (group := self._path(self._parent, instance)).is_dir():
            return
        try:
            (group / "cpu.max").write_text(cpu_max(cores))
        except OSError as error:
            _log.warning("the CPU of %s is not held to %g cores: %s", instance, cores, error)

    def remove(self, instance: str) -> None:
        """Remove the cgroup of an Instance that is gone."""
        if self._parent is not None:
            _remove(self._path(self._parent, instance))

    def clean(self, live: Container[str]) -> None:
        """Remove the cgroups of Instances that are not live: ones that ended while nobody watched."""
        if self._parent is None:
            return
        for group in self._parent.glob(f"{self._prefix}*"):
            if group.name.removeprefix(self._prefix) not in live:
                _remove(group)

    def _path(self, parent: Path, instance: str) -> Path:
        return parent / f"{self._prefix}{instance}"


def _remove(group: Path) -> None:
    try:
        group.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.debug("cgroup %s stays: %s", group, error)
