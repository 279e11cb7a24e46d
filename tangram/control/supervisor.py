"""Keeps a controller and the gateway workers running: `tangram up` becomes this process.

It starts what is not there and starts again what ends, with back-off for what keeps ending. It is the subreaper of
all processes below it, so that Instances whose controller died come to it and leave no zombies. It holds no state of
its own: if it is killed, everything else goes on, and the next `up` finds each process by the markers in its
environment. One whose command line and file are still the same is adopted; another is replaced.

A part that lives and is not heard for a while (its event loop is blocked, or it is stopped) is killed, and started
again like one that ended. A worker's connections are lost with it; those that nobody has accepted yet wait for its
successor.

SIGINT, SIGTERM and SIGHUP stop everything, in the order in which no request is lost: gateway workers drain, then the
controller stops the replicas, then itself. A second signal hastens. Standard library only, to stay small.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.listener import LISTEN_FD
from tangram.control.parts import CONTROLLER, Part, parts_of
from tangram.control.paths import ROLE_MARKER, StatePaths
from tangram.control.watchdog import LOOK_S, Listener
from tangram.node.processes import (
    MPS_ROLE,
    Found,
    SpawnError,
    child_environment,
    end_processes,
    find_processes,
    has_ended,
    open_process,
    read_stat,
    reap,
    signal_process,
    spawn,
)

#: Seconds before the n-th start in a row of a process that ended within PROVEN_S; the last one repeats.
RESTART_DELAYS_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
PROVEN_S: Final = 10.0
#: Seconds the gateway workers may drain, and the controller may stop the replicas.
DRAIN_S: Final = 35.0
STOP_REPLICAS_S: Final = 30.0
#: Seconds between SIGTERM and SIGKILL for what is left after that, and where a second signal came.
GRACE_S: Final = 5.0
HASTENED_GRACE_S: Final = 0.5
#: Exit code of a controller (and of ours) that cannot run as it was told; starting it again would not help.
UNUSABLE: Final = 2
#: Bytes of a log that are looked at for what a process that ended has said.
_LAST_WORDS: Final = 1 << 20

_PR_SET_CHILD_SUBREAPER: Final = 36
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Supervisor:
    """One installation's parts, by the command line."""

    paths: StatePaths
    parts: list[Part]
    started: bool = False
    signals: list[int] = field(default_factory=list)
    wakeup: socket.socket | None = None
    heartbeats: Listener | None = None
    hastened: bool = False
    """Whether a second signal came during a stop."""
    banner_fd: int = -1
    """pidfd of the process that prints the addresses."""

    # --- start and adopt ---

    def adopt(self) -> None:
        """Take over what a former supervisor left, and mark the rest to be started."""
        there: dict[str, Found] = {}
        for process in find_processes(self.paths.root):
            role = process.env.get(ROLE_MARKER, "")
            if role and role != MPS_ROLE and process.session == process.pid:
                there[role] = process
        wanted = {part.role: part for part in self.parts}
        for role, process in there.items():
            part = wanted.get(role)
            if part is not None and part.is_run_by(process):
                fd = open_process(process.pid, process.start_ticks)
                if fd is not None:
                    part.pid, part.start_ticks, part.fd = process.pid, process.start_ticks, fd
                    part.worked = True
                    part.began(adopted=True)
                    say(f"adopted {role} (pid {process.pid})")
            else:
                say(f"replacing {role} (pid {process.pid}), which was started with other settings")
                if role == CONTROLLER:
                    end_processes([process], 10.0)
                else:
                    signal_process(process.pid, process.start_ticks, signal.SIGTERM)
        for part in self.parts:
            if not part.running:
                part.start_at = time.monotonic()

    def start_due(self) -> None:
        """Start the parts whose time has come."""
        for part in self.parts:
            if part.start_at is None or part.start_at > time.monotonic():
                continue
            log = self.paths.log(part.role)
            part.log_offset = log.stat().st_size if log.exists() else 0
            markers = dict(part.markers)
            fds: list[int] = []
            if part.listen is not None:
                try:
                    listener = part.listener_at(part.listen)
                except OSError as error:
                    say(f"{part.role} cannot listen on port {part.listen[1]}: {error.strerror}; trying again")
                    part.start_at = time.monotonic() + RESTART_DELAYS_S[-1]
                    continue
                fds.append(listener.fileno())
                markers[LISTEN_FD] = str(listener.fileno())
            try:
                pid = spawn(part.argv, child_environment(os.environ, {}, markers), log, self.paths.root, pass_fds=fds)
            except SpawnError as error:
                say(f"{part.role}: {error}; trying again")
                part.start_at = time.monotonic() + RESTART_DELAYS_S[-1]
                continue
            stat = read_stat(pid)
            part.pid, part.start_ticks = pid, stat.start_ticks if stat else 0
            part.fd = os.pidfd_open(pid)
            part.began(adopted=False)

    # --- watch ---

    def run(self) -> int:
        """Until told to stop, or until the controller says that it cannot run; the exit code."""
        while True:
            self.start_due()
            self._wait(self._next_look())
            if any(s in _STOP_SIGNALS for s in self.signals):
                self.stop()
                return 0
            self.signals.clear()
            self._reap_orphans()
            for part in self.parts:
                if part.running and has_ended(part.fd) and (code := self._ended(part)) is not None:
                    if any(p.adopted and p.running for p in self.parts):
                        self.leave()
                    else:
                        self.stop()
                    return code
                self._kill_if_stuck(part)

    def _kill_if_stuck(self, part: Part) -> None:
        if not part.running or part.silence is None or self.heartbeats is None:
            return
        silent_s = part.silence.broken(time.monotonic())
        if silent_s is not None and self.heartbeats.reachable():
            say(f"{part.role} (pid {part.pid}) has done nothing for {silent_s:.0f} s; killing it")
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(part.fd, signal.SIGKILL)

    def _ended(self, part: Part) -> int | None:
        code = reap(part.fd)
        os.close(part.fd)
        part.fd = -1
        lived = time.monotonic() - part.started_at
        unusable = part.role == CONTROLLER and code == UNUSABLE
        if unusable and not part.worked:
            for line in self._last_words(part):
                print(f"tangram: {line}", file=sys.stderr, flush=True)
            return UNUSABLE
        part.worked = part.worked or not unusable
        part.failures = 1 if lived >= PROVEN_S or part.adopted else part.failures + 1
        delay = RESTART_DELAYS_S[min(part.failures, len(RESTART_DELAYS_S)) - 1]
        part.start_at = time.monotonic() + delay
        how = "ended" if code is None else (f"was ended by signal {-code}" if code < 0 else f"exited with code {code}")
        say(f"{part.role} (pid {part.pid}) {how}; starting it again" + (f" in {delay:g} s" if delay else ""))
        if part.made_plain(code):
            say(f"{part.role} runs plain Python from now on, which does not end so")
        if unusable or part.failures > 1:
            for line in self._last_words(part):
                say(f"{part.role}: {line}")
        return None

    def _last_words(self, part: Part) -> list[str]:
        try:
            with self.paths.log(part.role).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                # It is shorter where it was rotated meanwhile.
                log.seek(max(part.log_offset if part.log_offset <= size else 0, size - _LAST_WORDS))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return []
        told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return told or lines[-1:]

    def _next_look(self) -> float:
        times = [p.start_at - time.monotonic() for p in self.parts if p.start_at is not None]
        return max(0.0, min([LOOK_S, *times]))

    def _wait(self, timeout_s: float) -> None:
        poll = select.poll()
        if self.wakeup is not None:
            poll.register(self.wakeup, select.POLLIN)
        for part in self.parts:
            if part.running:
                poll.register(part.fd, select.POLLIN)
        if self.heartbeats is not None:
            poll.register(self.heartbeats, select.POLLIN)
        poll.poll(timeout_s * 1000)
        if self.wakeup is not None:
            with contextlib.suppress(BlockingIOError):
                self.signals += self.wakeup.recv(4096)
        if self.heartbeats is not None:
            heard = self.heartbeats.heard()
            for part in self.parts:
                if part.running and part.silence is not None and part.pid in heard:
                    part.silence.heard()

    def _reap_orphans(self) -> None:
        """Take the exit status of processes that came to us as subreaper; parts are reaped by their pidfd."""
        ours = {p.pid for p in self.parts if p.running}
        while True:
            try:
                seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if seen is None or seen.si_pid in ours:
                return
            with contextlib.suppress(ChildProcessError):
                os.waitpid(seen.si_pid, 0)

    # --- stop ---

    def leave(self) -> None:
        """End what was started here, and leave alone what served before."""
        self._end_banner()
        self._end([p for p in self.parts if p.running and not p.adopted], signal.SIGTERM, DRAIN_S)
        say("what ran before goes on, without a controller; mend that and run `tangram up` again, or `tangram down`")

    def stop(self) -> None:
        """Drain the gateway, stop the replicas, stop the controller; then end whatever is left."""
        self.signals.clear()
        self._end_banner()
        for part in self.parts:
            if part.listener is not None:
                # With the workers' own handles closed, new connections are refused instead of waiting for nobody.
                part.listener.close()
        workers = [p for p in self.parts if p.role != CONTROLLER and p.running]
        controllers = [p for p in self.parts if p.role == CONTROLLER and p.running]
        if workers:
            say("draining the gateway")
            self._end(workers, signal.SIGTERM, DRAIN_S)
        if controllers:
            say("stopping the replicas")
            self._end(controllers, signal.SIGINT, STOP_REPLICAS_S)
        left = find_processes(self.paths.root)
        if left:
            end_processes(left, HASTENED_GRACE_S if self.hastened else GRACE_S)
        with contextlib.suppress(FileNotFoundError):
            self.paths.endpoints.unlink()
        if self.heartbeats is not None:
            self.heartbeats.close()
            self.heartbeats = None
        say("stopped; nothing is left running")

    def _end_banner(self) -> None:
        if self.banner_fd >= 0:
            # By its pidfd: it may be gone for long, and its number another's.
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.banner_fd, signal.SIGKILL)
            os.close(self.banner_fd)
            self.banner_fd = -1

    def _end(self, parts: Sequence[Part], signum: int, limit_s: float) -> None:
        for part in parts:
            signal_process(part.pid, part.start_ticks, signum)
        until = time.monotonic() + limit_s
        while any(p.running for p in parts) and time.monotonic() < until:
            self._wait(until - time.monotonic())
            for part in parts:
                if part.running and has_ended(part.fd):
                    reap(part.fd)
                    os.close(part.fd)
                    part.fd = -1
            if any(s in _STOP_SIGNALS for s in self.signals):
                say("hastening")
                self.hastened = True
                break
            self._reap_orphans()
        self.signals.clear()
        for part in parts:
            if part.running:
                signal_process(part.pid, part.start_ticks, signal.SIGKILL)
                os.close(part.fd)
                part.fd = -1


def say(text: str) -> None:
    """A line for the person at the terminal; nobody may be there any more."""
    with contextlib.suppress(OSError):
        print(f"tangram: {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the options are those of `tangram up`, which has checked them."""
    parser = argparse.ArgumentParser(prog="tangram up")
    parser.add_argument("--file", required=True)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--admin", required=True)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log-json", action="store_true")
    parser.add_argument("--require-key", action="store_true")
    parser.add_argument("--advise", action="store_true")
    parser.add_argument("--no-fast-path", action="store_true")
    parser.add_argument("--no-native", action="store_true")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    options = parser.parse_args(argv)
    paths = StatePaths(options.state)
    paths.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(
            f"tangram: state directory {paths.root} is in use by a running `tangram up`; stop it first",
            file=sys.stderr,
        )
        return UNUSABLE
    os.ftruncate(lock, 0)
    me = read_stat(os.getpid())
    os.write(lock, f"{os.getpid()} {me.start_ticks if me else 0}\n".encode())
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for signum in (*_STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(signum, lambda *_: None)

    try:
        heartbeats = Listener(paths.heartbeat)
    except OSError as error:
        print(f"tangram: {paths.heartbeat}: {error.strerror}; make its folder writable", file=sys.stderr)
        return UNUSABLE
    supervisor = Supervisor(paths, parts_of(options, paths), wakeup=reader, heartbeats=heartbeats)
    supervisor.adopt()
    supervisor.start_due()
    banner = subprocess.Popen(
        [sys.executable, "-m", "tangram.cli.banner", "--state", str(paths.root)],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    supervisor.banner_fd = os.pidfd_open(banner.pid)
    # It is reaped like any orphan; without this, Popen would warn about it.
    banner.returncode = 0
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
