"""The backend for processes on this machine.

An Instance is a process in a session of its own that outlives the controller. `adopt` finds those of a former
controller again; `start` looks for one with the same name before it makes a new one, so that an Instance is never
started twice, even where a controller died between starting it and noting so. Each live one is watched by an
`Instance`; one task for all measures them and rotates their logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from packer.inventory import MigInstance
from tangram.node import logs, processes
from tangram.node.backend import InstancePhase, InstanceRecord, InstanceStatus, StartError, StartOrder
from tangram.node.instance import Instance
from tangram.node.measure import Meter, Usage
from tangram.node.mechanisms import GivenSlice, Mechanisms, SliceSettings, virtual
from tangram.node.mechanisms.mps import PIPES, MpsError
from tangram.node.ports import PortAllocator

_log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MEASURE_S: Final = 2.0
_ROTATE_S: Final = 10.0
_HIGHEST_PORT: Final = 65535


class LocalBackend:
    """Implements `tangram.node.backend.Backend`. Use it within one running event loop; `close` it at the end.

    `on_change` is called with an Instance's name after each change of its phase, in the event loop.
    """

    def __init__(
        self,
        state_dir: Path,
        on_change: Callable[[str], None],
        clock: Callable[[], float] = time.time,
        *,
        cgroup_parent: Path | None = None,
        mechanisms: Mechanisms | None = None,
    ) -> None:
        self.ports = PortAllocator()
        self._state_dir = Path(state_dir).absolute()
        self._logs = self._state_dir / "logs"
        self._on_change = on_change
        self._clock = clock
        self._groups = virtual.CpuGroups(self._state_dir, cgroup_parent or virtual.find_parent())
        self._budgets = virtual.CpuBudgets(self._state_dir)
        self._mechanisms = mechanisms or Mechanisms(self._state_dir)
        self._device_locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._checks: set[asyncio.Task[None]] = set()
        self._instances: dict[str, Instance] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._starting: set[asyncio.Task[InstanceStatus]] = set()
        self._keeper: asyncio.Task[None] | None = None

    def settings(self, given: GivenSlice) -> SliceSettings:
        """What a process on a slice needs, as far as it is known without asking its devices; StartError."""
        return self._mechanisms.settings(given)

    async def prepare(self, given: GivenSlice, held: Callable[[str], Collection[MigInstance]]) -> SliceSettings:
        """Have the devices give a slice, each device to one after the other; StartError where they do not."""
        async with contextlib.AsyncExitStack() as turn:
            for device in sorted(d.id for d in given.devices):
                await turn.enter_async_context(self._device_locks[device])
            layouts = {d.id: held(d.id) for d in given.devices}
            return await asyncio.to_thread(self._mechanisms.prepare, given, layouts)

    async def tidy(self, used: Callable[[], Collection[str]]) -> None:
        """End the MPS daemons of devices that nobody uses so."""
        for device in await asyncio.to_thread(self._mechanisms.daemons):
            async with self._device_locks[device]:
                if device in used():
                    continue
                try:
                    await asyncio.to_thread(self._mechanisms.end_daemon, device)
                except MpsError as error:
                    _log.warning("the MPS daemon of %s does not end: %s", device, error)

    async def start(self, order: StartOrder) -> InstanceStatus:
        """Start a process, or return the status of the one that lives; StartError where the system refuses."""
        # Goes on to its end even if the caller is cancelled: a process must not start unseen.
        task = asyncio.get_running_loop().create_task(self._start(order))
        self._starting.add(task)
        task.add_done_callback(self._started)
        return await asyncio.shield(task)

    async def stop(self, instance: str, grace_s: float) -> None:
        """SIGTERM to the process group, SIGKILL after grace_s; returns when nothing of it is left."""
        async with self._locks[instance]:
            watched = self._instances.get(instance)
        if watched is not None:
            await watched.stop(grace_s)

    async def stop_all(self, grace_s: float) -> None:
        """Stop every Instance, all at once."""
        await asyncio.gather(*(self.stop(name, grace_s) for name in list(self._instances)))

    def resize(self, instance: str, cores: float | None) -> None:
        """Hold an Instance to so many cores from now on: by its cgroup, or by the budget that it keeps itself."""
        watched = self._instances.get(instance)
        if watched is None or not watched.alive or cores is None:
            return
        watched.order = replace(watched.order, cpu_cores=cores)
        if watched.phase is not InstancePhase.STARTING:
            self._groups.limit(instance, cores)
        self._budgets.write(instance, cores)

    def forget(self, instance: str) -> None:
        """Drop the status of an exited Instance. The logs of the last 50 that are gone are kept."""
        watched = self._instances.get(instance)
        if watched is None or watched.alive or self._locks[instance].locked():
            # Locked: it is being started again, which replaces its status.
            return
        del self._instances[instance]
        del self._locks[instance]
        self.ports.release(watched.order.port)
        logs.remove_old(self._logs, self._instances)

    def statuses(self) -> Mapping[str, InstanceStatus]:
        """Every Instance known, exited ones until they are started again or forgotten."""
        return {name: watched.status() for name, watched in self._instances.items()}

    def log_path(self, instance: str) -> Path:
        """File with standard output and error of the Instance."""
        return self._logs / f"{instance}.log"

    async def adopt(self, records: Sequence[InstanceRecord]) -> Mapping[str, InstanceStatus]:
        """Find the Instances of a former controller again, and watch them; call it once, before anything is started.

        Returns a status for each record (EXITED where its process has gone) and for each live Instance that no
        record knows: it was started, and its controller died before noting so; its order is made from its markers
        until `start` is called with the real one. All have been probed once when this returns.
        """
        found = await asyncio.to_thread(processes.find_processes, self._state_dir)
        by_pid = {p.pid: p for p in found}
        marked = {name: p for name, p in processes.leaders(found).items() if _NAME.fullmatch(name)}
        adopted: dict[str, Instance] = {}
        for record in records:
            order = record.order
            watched = self._instance(
                order, record.pid, record.start_ticks, started_at=record.started_at, ready_at=record.ready_at
            )
            if _is_recorded(record, by_pid.get(record.pid)):
                watched.watch()
            else:
                # What else carries its markers are descendants, whether or not one of them leads a session.
                watched.end_unwatched()
            adopted[order.instance] = watched
        for name, leader in marked.items():
            if name not in adopted:
                adopted[name] = self._instance(_order_from_markers(leader), leader.pid, leader.start_ticks)
                adopted[name].watch()
        names = {p.env.get(processes.INSTANCE, "") for p in found}
        orphaned = {n for n in names - adopted.keys() if _NAME.fullmatch(n)}
        self._instances.update(adopted)
        self.ports.reserve(w.order.port for w in adopted.values())
        self._groups.clean(adopted.keys())
        await asyncio.gather(*(self._settle(w) for w in adopted.values()), *map(self._end_leftovers, orphaned))
        self._keep()
        return {name: watched.status() for name, watched in adopted.items()}

    async def close(self) -> None:
        """Stop watching; processes are left alone."""
        if self._starting:
            await asyncio.wait(self._starting)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await asyncio.gather(*self._checks, return_exceptions=True)
        await asyncio.gather(*(w.close() for w in self._instances.values()))

    async def _start(self, order: StartOrder) -> InstanceStatus:
        name = order.instance
        if not _NAME.fullmatch(name):
            raise StartError(f"instance {name!r} is no name for one; use letters, digits, '.', '_' and '-'")
        async with self._locks[name]:
            known = self._instances.get(name)
            if known is not None and (known.stopping or known.exited):
                await known.ended.wait()
            if known is not None and known.alive:
                known.order = order
                return known.status()
            if known is None and (living := await self._find(name)) is not None:
                watched = self._instance(order, living.pid, living.start_ticks)
            else:
                watched = await self._spawn(order)
            if known is not None and known.order.port != order.port:
                self.ports.release(known.order.port)
            self.ports.reserve([order.port])
            self._instances[name] = watched
            watched.watch()
            self._keep()
            return watched.status()

    async def _find(self, name: str) -> processes.Found | None:
        found = await asyncio.to_thread(processes.find_processes, self._state_dir)
        leader = processes.leaders(found).get(name)
        if leader is None and any(p.env.get(processes.INSTANCE) == name for p in found):
            await self._end_leftovers(name)
        return leader

    async def _spawn(self, order: StartOrder) -> Instance:
        log = self.log_path(order.instance)
        wrapper: tuple[str, ...] = ()
        markers = {
            processes.STATE: str(self._state_dir),
            processes.INSTANCE: order.instance,
            processes.MODEL: order.model,
            processes.REVISION: order.revision,
            processes.PORT: str(order.port),
            processes.READINESS: order.readiness_path,
        }
        if order.cpu_cores is not None:
            markers[processes.CPU_SHARE] = f"{order.cpu_cores:g}"
            wrapper = self._groups.enter(order.instance, order.cpu_cores)
            if not wrapper:
                markers[processes.CPU_CORES] = f"{order.cpu_cores:g}"
            markers[processes.CPU_FILE] = str(self._budgets.begin(order.instance))
        env = processes.child_environment(os.environ, order.env, markers)
        try:
            offset = log.stat().st_size
        except OSError:
            offset = 0
        try:
            pid = await asyncio.to_thread(processes.spawn, order.argv, env, log, order.working_dir, wrapper)
        except processes.SpawnError as error:
            self._groups.remove(order.instance)
            raise StartError(f"{order.instance}: {error}") from error
        stat = processes.read_stat(pid)
        assert stat is not None, "a child that is not reaped has an entry in /proc"
        return self._instance(order, pid, stat.start_ticks, adopted=False, log_offset=offset)

    def _instance(
        self,
        order: StartOrder,
        pid: int,
        start_ticks: int,
        *,
        adopted: bool = True,
        log_offset: int = 0,
        started_at: float | None = None,
        ready_at: float | None = None,
    ) -> Instance:
        return Instance(
            order,
            pid,
            start_ticks,
            state_dir=self._state_dir,
            log=self.log_path(order.instance),
            log_offset=log_offset,
            clock=self._clock,
            changed=partial(self._on_change, order.instance),
            entering=self._entering,
            adopted=adopted,
            started_at=started_at,
            ready_at=ready_at,
        )

    def _entering(self, order: StartOrder, phase: InstancePhase) -> None:
        if phase is InstancePhase.READY and PIPES in order.env:
            check = asyncio.get_running_loop().create_task(self._check_held(order))
            self._checks.add(check)
            check.add_done_callback(self._checks.discard)
        if phase is InstancePhase.READY and order.cpu_cores is not None:
            self._groups.limit(order.instance, order.cpu_cores)
        elif phase is InstancePhase.EXITED:
            self._groups.remove(order.instance)
            self._budgets.remove(order.instance)

    async def _check_held(self, order: StartOrder) -> None:
        """A process that has not found its daemon may take what it wants: that must not go unsaid."""
        watched = self._instances.get(order.instance)
        found = await asyncio.to_thread(processes.marked_processes, self._state_dir, order.instance)
        held = await asyncio.to_thread(self._mechanisms.is_held, order.env, [p.pid for p in found])
        # It may have ended meanwhile.
        if not held and watched is not None and watched.alive and not watched.exited:
            _log.warning(
                "%s is ready and not attached to its MPS daemon: it is not held to its memory and compute",
                order.instance,
            )

    async def _settle(self, watched: Instance) -> None:
        """Until it has been probed once, or has ended."""
        if watched.exited:
            await watched.ended.wait()
        else:
            await watched.probe_once()

    async def _end_leftovers(self, name: str) -> None:
        # No leader is left, so that only the markers tell what belongs to it.
        left = partial(processes.marked_processes, self._state_dir, name)
        if outlived := await asyncio.to_thread(processes.kill_until_gone, left):
            _log.error("%s has left processes that SIGKILL does not end: %s", name, outlived)

    def _started(self, task: asyncio.Task[InstanceStatus]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            # Whether or not the caller still waits for it.
            task.exception()

    # --- measuring and logs ---

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._keep_house())

    async def _keep_house(self) -> None:
        meter = Meter()
        next_rotation = 0.0
        while True:
            roots = {n: (w.pid, w.start_ticks) for n, w in self._instances.items() if w.alive}
            rotating = time.monotonic() >= next_rotation
            if rotating:
                next_rotation = time.monotonic() + _ROTATE_S
            try:
                for name, usage in (await asyncio.to_thread(self._look_after, meter, roots, rotating)).items():
                    watched = self._instances.get(name)
                    if watched is not None and watched.alive and watched.pid == roots[name][0]:
                        watched.take_usage(usage)
            except Exception:
                _log.exception("Instances could not be measured; trying again")
            await asyncio.sleep(_MEASURE_S)

    def _look_after(self, meter: Meter, roots: Mapping[str, tuple[int, int]], rotating: bool) -> Mapping[str, Usage]:
        for name in roots if rotating else ():
            try:
                logs.rotate(self.log_path(name))
            except OSError as error:
                _log.warning("log of %s cannot be rotated: %s", name, error)
        return meter.sample(roots, time.clock_gettime(time.CLOCK_BOOTTIME))


def _is_recorded(record: InstanceRecord, marked: processes.Found | None) -> bool:
    """Whether the process of a record still lives and is the one that was recorded."""
    if marked is not None and marked.env.get(processes.INSTANCE) != record.order.instance:
        return False
    # It may have overwritten its environment or been exec'ed without it; start time and session tell enough.
    stat = processes.read_stat(record.pid)
    return stat is not None and not stat.dead and stat.start_ticks == record.start_ticks and stat.session == record.pid


def _order_from_markers(leader: processes.Found) -> StartOrder:
    try:
        argv = tuple(Path(f"/proc/{leader.pid}/cmdline").read_text(errors="replace").rstrip("\0").split("\0"))
    except OSError:
        argv = ()
    port = leader.env.get(processes.PORT, "")
    cores = leader.env.get(processes.CPU_SHARE, "")
    return StartOrder(
        instance=leader.env[processes.INSTANCE],
        model=leader.env.get(processes.MODEL, ""),
        revision=leader.env.get(processes.REVISION, ""),
        argv=argv,
        env={},
        port=int(port) if port.isdecimal() and int(port) <= _HIGHEST_PORT else 0,
        readiness_path=leader.env.get(processes.READINESS, "/v2/health/ready"),
        cpu_cores=float(cores) if re.fullmatch(r"\d+(\.\d+)?", cores) else None,
    )
