"""`tangram down`: stops what runs on a state directory, under a live supervisor or left by a killed one.

A live supervisor is told to stop and does it in its own order. What a killed one left is ended in the same order: the
gateway's workers drain, the controller stops the replicas, and whatever is still there is ended by its markers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

from tangram.cli.client import CommandError
from tangram.cli.up import supervisor_of, unused
from tangram.control.paths import ROLE_MARKER, StatePaths
from tangram.node.processes import (
    Found,
    Stat,
    end_processes,
    find_processes,
    leaders,
    open_process,
    signal_process,
)

#: As the supervisor has it: workers may drain, the controller may stop replicas, replicas may end.
_DRAIN_S: Final = 35.0
_STOP_REPLICAS_S: Final = 30.0
_END_S: Final = 10.0
#: Between taking the lock and writing who did.
_LOCKED_S: Final = 1.0
_SUPERVISOR_S: Final = _DRAIN_S + _STOP_REPLICAS_S + _END_S

Say = Callable[[str], None]


def down(paths: StatePaths, say: Say) -> None:
    """Stop everything of a state directory; raises CommandError if something outlives even SIGKILL."""
    if not paths.root.is_dir():
        say(f"nothing runs: there is no state directory {paths.root}")
        return
    stopped = _stop_supervisor(paths, say)
    with unused(paths):
        left = find_processes(paths.root)
        if left:
            _end(left, paths, say)
        elif not stopped:
            say(f"nothing runs on {paths.root}")
        paths.endpoints.unlink(missing_ok=True)


def _stop_supervisor(paths: StatePaths, say: Say) -> bool:
    """Tell a live supervisor to stop, and wait for it; whether there was one."""
    try:
        with unused(paths):
            return False
    except CommandError:
        stat = _holder(paths)
    handle = open_process(stat.pid, stat.start_ticks)
    if handle is None:
        return True
    try:
        say(f"stopping the supervisor (pid {stat.pid})")
        signal_process(stat.pid, stat.start_ticks, signal.SIGTERM)
        if not _ended(handle, _SUPERVISOR_S):
            say("it takes too long; ending it and the rest")
            signal_process(stat.pid, stat.start_ticks, signal.SIGKILL)
            _ended(handle, _END_S)
        else:
            say("stopped")
    finally:
        os.close(handle)
    return True


def _holder(paths: StatePaths) -> Stat:
    """The supervisor that holds the lock; one that took it a moment ago has yet to write so."""
    until = time.monotonic() + _LOCKED_S
    while (stat := supervisor_of(paths)) is None:
        if time.monotonic() > until:
            raise CommandError(f"{paths.lock} is held by a process that is not a supervisor; end that one first")
        time.sleep(0.02)
    return stat


def _end(left: Iterable[Found], paths: StatePaths, say: Say) -> None:
    processes = list(left)
    workers = [p for p in processes if p.env.get(ROLE_MARKER, "").startswith("worker")]
    controllers = [p for p in processes if p.env.get(ROLE_MARKER, "") == "controller"]
    for worker in workers:
        say(f"draining gateway {worker.env[ROLE_MARKER]} (pid {worker.pid})")
    end_processes(workers, _DRAIN_S)
    for controller in controllers:
        say(f"stopping the controller (pid {controller.pid}) and its replicas")
        # SIGINT stops the replicas with it; SIGTERM would leave them for the next controller.
        handle = open_process(controller.pid, controller.start_ticks)
        if handle is not None:
            signal_process(controller.pid, controller.start_ticks, signal.SIGINT)
            _ended(handle, _STOP_REPLICAS_S)
            os.close(handle)
    rest = end_processes(find_processes(paths.root), _END_S) + find_processes(paths.root)
    if rest:
        pids = ", ".join(str(p.pid) for p in rest)
        raise CommandError(f"still there after SIGKILL: {pids}; they wait for something the system does not give")
    for name, process in sorted(leaders(processes).items()):
        say(f"replica {name} (pid {process.pid}) has ended")
    say(f"ended {len(processes)} processes; nothing is left running")


def _ended(handle: int, limit_s: float) -> bool:
    """Whether the process of a pidfd ends within the limit."""
    from select import POLLIN, poll

    watch = poll()
    watch.register(handle, POLLIN)
    until = time.monotonic() + limit_s
    while (left := until - time.monotonic()) > 0:
        if watch.poll(left * 1000):
            return True
    return False
