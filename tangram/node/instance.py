"""One Instance's process while it is watched: its readiness, its end, and its status.

    STARTING -> READY <-> UNREADY        by the readiness probe
        |         |          |
        '---------+----------+--> EXITED    by the pidfd

One that was ready and then gives no answer at all to its probes for `liveness_s` is killed (a deadlock, a SIGSTOP), and
ends like any other. One that answers that it is not ready is left alone.

The pidfd says at once when the process ends, whether it is a child or was adopted. What is left of it then (workers it
had forked) is ended too: at once after a crash, with the rest of the grace period when it was being stopped. EXITED is
said when nothing is left, so that the slice is really free.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from tangram.node import logs, processes
from tangram.node.backend import InstancePhase, InstanceStatus, StartOrder
from tangram.node.launch import HOST
from tangram.node.measure import Usage
from tangram.node.probe import next_delay, probe

_log = logging.getLogger(__name__)

_MESSAGE_LENGTH: Final = 300
#: Probes in a row without any answer before an Instance may be killed: one alone may be our own doing.
_ENOUGH_SILENCE: Final = 3


class Instance:
    """Watches from `watch` until the end of the process or `close`, whichever is first.

    `changed` is called after each change of phase, `entering` with its order and the new phase before it.
    """

    def __init__(
        self,
        order: StartOrder,
        pid: int,
        start_ticks: int,
        *,
        state_dir: Path,
        log: Path,
        log_offset: int = 0,
        clock: Callable[[], float],
        changed: Callable[[], None],
        entering: Callable[[StartOrder, InstancePhase], None],
        adopted: bool = False,
        started_at: float | None = None,
        ready_at: float | None = None,
    ) -> None:
        self.order = order
        self.pid = pid
        self.start_ticks = start_ticks
        self.phase = InstancePhase.STARTING if ready_at is None else InstancePhase.UNREADY
        self.ended = asyncio.Event()
        self._state_dir = state_dir
        self._log_file = log
        self._log_offset = log_offset
        self._clock = clock
        self._changed = changed
        self._entering = entering
        self._adopted = adopted
        self._started_at = clock() - processes.age_s(start_ticks) if started_at is None else started_at
        self._ready_at = ready_at
        self._exited_at: float | None = None
        self._exit_code: int | None = None
        self._usage = Usage(None, None)
        self._message = ""
        self._failures = 0
        self._unanswered: list[float] = []
        """When the probes began that had no answer at all, since the last that had one: the first few."""
        self._verdict = ""
        """Why we killed it."""
        self._watched_since = time.monotonic()
        self._fd: int | None = None
        self._witnessed = False
        self._stop_by: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._probing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Instance({self.order.instance}, pid={self.pid}, {self.phase.value})"

    @property
    def alive(self) -> bool:
        """Whether anything of it may still run."""
        return self.phase is not InstancePhase.EXITED

    @property
    def exited(self) -> bool:
        """Whether its process has ended; what is left of it may still be ended."""
        return self._exited_at is not None

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop_by is not None

    def status(self) -> InstanceStatus:
        """As it is now."""
        return InstanceStatus(
            instance=self.order.instance,
            model=self.order.model,
            pid=self.pid,
            start_ticks=self.start_ticks,
            port=self.order.port,
            phase=self.phase,
            started_at=self._started_at,
            ready_at=self._ready_at,
            exited_at=self._exited_at,
            exit_code=self._exit_code,
            cpu_percent=self._usage.cpu_percent,
            memory_mib=self._usage.memory_mib,
            message=self._message,
            adopted=self._adopted,
        )

    def take_usage(self, usage: Usage) -> None:
        """Show what was measured last."""
        self._usage = usage

    def watch(self) -> None:
        """Begin to watch the process and to probe it; one that is gone already ends at once."""
        self._watched_since = time.monotonic()
        self._fd = processes.open_process(self.pid, self.start_ticks)
        if self._fd is None:
            self.end_unwatched()
            return
        self._witnessed = True
        asyncio.get_running_loop().add_reader(self._fd, self._on_exit)
        self._probing = self._run(self._probe_for_ever())

    def end_unwatched(self) -> None:
        """The process has gone while nobody watched: end what is left of it and say so."""
        self._exited_at = self._clock()
        self._run(self._finish())

    async def probe_once(self) -> None:
        """Probe now and take the result into account."""
        order, began = self.order, time.monotonic()
        failure = await probe(HOST, order.port, order.readiness_path, order.readiness_timeout_s)
        if self._exited_at is not None:
            return
        if failure is None or failure.answered:
            self._unanswered.clear()
        elif len(self._unanswered) < _ENOUGH_SILENCE:
            self._unanswered.append(began)
        if failure is None:
            self._failures = 0
            if self.phase is not InstancePhase.READY:
                self._message = ""
                if self._ready_at is None:
                    self._ready_at = self._clock()
                self._enter(InstancePhase.READY)
            return
        self._failures += 1
        if self.phase is not InstancePhase.READY:
            self._message = failure.text
        elif self._failures >= order.failure_threshold:
            self._message = failure.text
            self._enter(InstancePhase.UNREADY)
        self._kill_if_dead(time.monotonic())

    def _kill_if_dead(self, now: float) -> None:
        if self._ready_at is None or len(self._unanswered) < _ENOUGH_SILENCE or self._verdict:
            return
        silent_s = now - self._unanswered[0]
        if silent_s >= self.order.liveness_s:
            self._verdict = f"gave no answer to its probes for {silent_s:.0f} s and was killed"
            _log.warning("%s %s", self.order.instance, self._verdict)
            self._signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM to the group, SIGKILL to all that is left after grace_s; returns when nothing is."""
        if not self.alive:
            return
        kill_at = time.monotonic() + grace_s
        if self._stop_by is None:
            self._stop_by = kill_at
            self._signal(signal.SIGTERM)
        else:
            self._stop_by = min(self._stop_by, kill_at)
        try:
            async with asyncio.timeout(grace_s):
                await self.ended.wait()
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self.ended.wait()

    async def close(self) -> None:
        """Stop watching; the process is left alone."""
        self._unwatch()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _signal(self, signum: int) -> None:
        # Without a pidfd the leader is gone, and its number may be another's; leftovers are ended by `_finish`.
        if self._fd is not None and not processes.has_ended(self._fd):
            processes.signal_group(self.pid, signum)

    async def _probe_for_ever(self) -> None:
        age: float | None = None
        while True:
            ready = self.phase is InstancePhase.READY
            await asyncio.sleep(next_delay(age, self.order.readiness_period_s, time.monotonic(), ready=ready))
            await self.probe_once()
            age = time.monotonic() - self._watched_since

    def _on_exit(self) -> None:
        assert self._fd is not None
        self._exited_at = self._clock()
        self._exit_code = processes.reap(self._fd)
        self._unwatch()
        if self._probing is not None:
            self._probing.cancel()
        self._run(self._finish())

    async def _finish(self) -> None:
        try:
            await self._end_leftovers()
        except OSError:
            _log.exception("it cannot be told what %s has left", self.order.instance)
        self._message = self._verdict
        if not self.stopping and not self._verdict:
            self._message = last_line(await asyncio.to_thread(logs.tail_since, self._log_file, self._log_offset, 20))
        self._usage = Usage(None, None)
        self._enter(InstancePhase.EXITED)
        self.ended.set()

    async def _end_leftovers(self) -> None:
        whose = partial(
            processes.leftovers,
            self.pid,
            self.start_ticks,
            state_dir=self._state_dir,
            instance=self.order.instance,
            witnessed=self._witnessed,
        )
        left = await asyncio.to_thread(whose)
        if left and self.phase is InstancePhase.READY:
            # It cannot serve any more, but its slice is not free yet.
            self._enter(InstancePhase.UNREADY)
        while left and self._stop_by is not None and time.monotonic() < self._stop_by:
            await asyncio.sleep(0.02)
            left = await asyncio.to_thread(whose)
        if left and (outlived := await asyncio.to_thread(processes.kill_until_gone, whose)):
            _log.error("%s has left processes that SIGKILL does not end: %s", self.order.instance, outlived)

    def _enter(self, phase: InstancePhase) -> None:
        self._entering(self.order, phase)
        self.phase = phase
        self._changed()

    def _unwatch(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("watching %s failed", self.order.instance, exc_info=error)


def last_line(text: str) -> str:
    """The last line with anything in it, without control characters and cut to a length that fits a table's cell."""
    for line in reversed(text.splitlines()):
        cleaned = "".join(c if c.isprintable() else " " for c in line).strip()
        if cleaned:
            return cleaned if len(cleaned) <= _MESSAGE_LENGTH else f"{cleaned[: _MESSAGE_LENGTH - 1]}…"
    return ""
