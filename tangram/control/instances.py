"""The loop's hands: makes what is on record of the replicas' processes true, in tasks of their own.

It acts on the recorded phases alone, so a controller that was killed between record and act does the rest when it is
back.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import replace

from packer.inventory import Device, MigInstance
from tangram.control.state import ControllerState
from tangram.control.store import Store
from tangram.core import convert
from tangram.core.replica import Observation, Phase, Replica
from tangram.node.backend import Backend, InstancePhase, InstanceStatus, StartError
from tangram.node.launch import order
from tangram.node.mechanisms.slices import GivenSlice
from tangram.spec import Mechanism

log = logging.getLogger("tangram.loop")


class Instances:
    """Starts and stops processes; `happened` is called when one of these tasks has ended.

    Replicas whose process could not be put on record are added to `unrecorded`.
    """

    def __init__(
        self,
        state: ControllerState,
        store: Store,
        backend: Backend,
        unrecorded: set[str],
        happened: Callable[[], None],
    ) -> None:
        self._state = state
        self._store = store
        self._backend = backend
        self._unrecorded = unrecorded
        self._happened = happened
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Task[None]] = {}
        self._tidying: dict[str, asyncio.Task[None]] = {}
        self._tidied: frozenset[str] | None = None
        """Devices that were used by MPS when the others were tidied last; None: not since the controller's start."""
        self._start_errors: dict[str, str] = {}
        self._loans: dict[str, int] = {}
        """What each process was told last; none after a start of the controller's or its own."""

    def seen(self, replica: Replica) -> Observation | None:
        """What is to be made of the replica's process; None where nothing is to be concluded yet."""
        if replica.name in self._starts:
            return None
        if (error := self._start_errors.pop(replica.name, None)) is not None:
            return Observation(alive=False, started=False, message=error)
        status = self._state.statuses.get(replica.name)
        if replica.phase is Phase.STARTING and replica.pid is None:
            return None if status is None or status.phase is InstancePhase.EXITED else _observation(status)
        if status is None:
            if replica.phase is Phase.CRASHED:
                return None
            return Observation(alive=False, message="its process was not found again")
        if status.phase is InstancePhase.EXITED and replica.name in self._stops:
            return None
        return _observation(status)

    def reconcile(self) -> None:
        """Make what is on record true."""
        self._tidy()
        statuses = self._backend.statuses()
        for replica in self._state.replicas.values():
            status = statuses.get(replica.name)
            self._resize(replica, status)
            alive = status is not None and status.phase is not InstancePhase.EXITED
            if replica.phase is Phase.STARTING and replica.pid is None and not alive:
                if replica.name not in self._starts:
                    self._spawn(self._starts, replica.name, self._start(replica))
            elif replica.phase is Phase.STOPPING and alive and replica.name not in self._stops:
                self._spawn(self._stops, replica.name, self._stop(replica))

    def _resize(self, replica: Replica, status: InstanceStatus | None) -> None:
        """Give the process the compute that is on record; one that is started anew begins with its slice's own."""
        if status is None or status.phase is not InstancePhase.READY:
            self._loans.pop(replica.name, None)
            return
        if self._loans.get(replica.name, 0) == replica.loan:
            return
        devices = self._state.devices_of(replica)
        entry = self._state.models.get(replica.model)
        if devices is not None and entry is not None:
            self._loans[replica.name] = replica.loan
            self._backend.resize(replica.name, convert.cores(devices, replica.placement.request.compute + replica.loan))

    def _held(self, device: str) -> set[MigInstance]:
        """GPU instances of a device that replicas on record hold, whatever their phase."""
        return {
            instance
            for replica in self._state.replicas.values()
            for id, instance in zip(replica.placement.all_devices, replica.placement.mig, strict=False)
            if id == device
        }

    def _tidy(self) -> None:
        """What runs for devices that were used by MPS ends with the last replica there."""
        used = self._by_mps()
        if used != self._tidied and not self._tidying:
            self._tidied = used
            self._spawn(self._tidying, "tidy", self._backend.tidy(self._by_mps))

    def _by_mps(self) -> frozenset[str]:
        there = (r.placement for r in self._state.replicas.values())
        return frozenset(d for p in there if p.request.mechanism == Mechanism.MPS for d in p.all_devices)

    async def close(self) -> None:
        """Wait for starts under way to be recorded, and leave the processes alone."""
        for task in self._stops.values():
            task.cancel()
        waited = (*self._starts.values(), *self._stops.values(), *self._tidying.values())
        await asyncio.gather(*waited, return_exceptions=True)

    def _spawn(self, tasks: dict[str, asyncio.Task[None]], name: str, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work, name=name)  # type: ignore[arg-type]
        tasks[name] = task

        def done(_: asyncio.Task[None]) -> None:
            tasks.pop(name, None)
            self._happened()

        task.add_done_callback(done)

    async def _start(self, replica: Replica) -> None:
        entry = self._state.models.get(replica.model)
        devices = self._state.devices_of(replica)
        if entry is None or devices is None:
            self._start_errors[replica.name] = "its model or a device of its is gone"
            return
        try:
            share = await self._backend.prepare(given(replica, devices), self._held)
            model = entry.document(replica.revision)
            wanted = order(model, replica.name, replica.port, replica.placement.all_devices, share)
            status = await self._backend.start(wanted)
        except StartError as error:
            self._start_errors[replica.name] = str(error)
            return
        current = self._state.replicas.get(replica.name)
        if current is not None:
            known = replace(current, pid=status.pid, start_ticks=status.start_ticks, started_at=status.started_at)
            self._state.replicas[replica.name] = known
            try:
                self._store.put_replicas([known])
            except sqlite3.Error as error:
                log.error("the process of %s cannot be recorded: %s", replica.name, error)
                self._unrecorded.add(replica.name)

    async def _stop(self, replica: Replica) -> None:
        entry = self._state.models.get(replica.model)
        grace = entry.model.spec.runtime.termination_grace_period_seconds if entry else 10.0
        await self._backend.stop(replica.name, grace)


def given(replica: Replica, devices: tuple[Device, ...]) -> GivenSlice:
    """The replica's slice as the node has to give it."""
    placement = replica.placement
    request = placement.request
    return GivenSlice(request.mechanism, devices, request.compute, request.memory_mib, request.limit_mib, placement.mig)


def _observation(status: InstanceStatus) -> Observation:
    return Observation(
        alive=status.phase is not InstancePhase.EXITED,
        ready=status.phase is InstancePhase.READY,
        pid=status.pid,
        start_ticks=status.start_ticks,
        started_at=status.started_at,
        exit_code=status.exit_code,
        message=status.message,
    )
