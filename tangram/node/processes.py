"""Processes that outlive whoever started them: how they are started, found again, watched and ended.

Every process of an installation carries markers in its environment: `TANGRAM_STATE` names the state directory it
belongs to, `TANGRAM_INSTANCE` the Instance, or `TANGRAM_ROLE` which of our own it is (controller, worker-0). After a
restart `find_processes` reads them back from /proc, so that nothing depends on a record having been written in time. A
pid alone proves nothing, since the system uses it again; a process is always meant by (pid, start time), and signals go
through a pidfd that was opened before the start time was compared.

An Instance leads a session of its own. Its *leftovers* are what still lives of it without its leader: the session's
members, and descendants that left the session but still carry the markers.

What may be signalled is chosen narrowly, since a mistake here ends strangers. Never chosen are pid 1, the caller, its
ancestors, and whoever is merely in a session of number 0 or 1 or the caller's. A session's number alone proves little:
it is free again once the session is empty, 0 stands for everything from outside of a container's pid namespace, and a
daemon that detached itself is in a session whose leader has gone. So a session counts as an Instance's only where its
leader was seen alive as such by this process, or where one of its members carries the markers.

Standard library only, and nothing costly of it: the supervisor imports this module.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

STATE: Final = "TANGRAM_STATE"
ROLE: Final = "TANGRAM_ROLE"
#: Role of what runs for GPUs beside the replicas: control daemons and servers of MPS.
MPS_ROLE: Final = "mps"
INSTANCE: Final = "TANGRAM_INSTANCE"
MODEL: Final = "TANGRAM_MODEL"
REVISION: Final = "TANGRAM_REVISION"
PORT: Final = "TANGRAM_PORT"
READINESS: Final = "TANGRAM_READINESS_PATH"
#: Ids of the devices that the slice is of, joined by commas.
DEVICES: Final = "TANGRAM_DEVICES"
#: Cores that the slice's compute stands for, however they are held.
CPU_SHARE: Final = "TANGRAM_CPU_SHARE"
#: The same, where the Instance has to keep to them by itself.
CPU_CORES: Final = "TANGRAM_CPU_CORES"
#: A file that says so anew when it changes while the Instance runs.
CPU_FILE: Final = "TANGRAM_CPU_FILE"

_PREFIX: Final = "TANGRAM_"
_TICKS_A_SECOND: Final = os.sysconf("SC_CLK_TCK")
#: How long a process may take to vanish after SIGKILL (one that waits for a dead disk does not).
_KILL_WAIT_S: Final = 5.0
#: How long a new program's environment may take to appear in /proc; it is there within microseconds.
_EXEC_WAIT_S: Final = 0.1


class Stat(NamedTuple):
    """What /proc/PID/stat says, as far as it is used."""

    pid: int
    state: str
    ppid: int
    pgrp: int
    session: int
    cpu_ticks: int
    """User and system time of the process and of the children it has waited for."""
    start_ticks: int
    """Since boot; tells two users of one pid apart."""

    @property
    def dead(self) -> bool:
        """Whether nothing is left but an exit status that nobody has asked for."""
        return self.state in "ZX"


class Found(NamedTuple):
    """A live process of a state directory."""

    pid: int
    start_ticks: int
    ppid: int
    pgrp: int
    session: int
    env: Mapping[str, str]
    """Its variables that begin with TANGRAM_."""


class SpawnError(Exception):
    """The system refused to start a process; the text says why and what to mend."""


def parse_stat(text: str) -> Stat:
    """Read the line of /proc/PID/stat; the command's name in it may hold blanks and parentheses."""
    head, _, tail = text.rpartition(")")
    fields = tail.split()
    cpu = int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])
    pid = int(head.partition(" ")[0])
    return Stat(pid, fields[0], int(fields[1]), int(fields[2]), int(fields[3]), cpu, int(fields[19]))


def read_stat(pid: int, proc: str = "/proc") -> Stat | None:
    """None where there is no such process."""
    try:
        with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            return parse_stat(file.read())
    except (OSError, IndexError, ValueError):
        return None


def age_s(start_ticks: int) -> float:
    """Seconds since a process began."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / _TICKS_A_SECOND)


def read_markers(pid: int) -> Mapping[str, str] | None:
    """The TANGRAM_ variables a process was started with; None where they cannot be known.

    That is so where the process is gone or another user's, and where it has overwritten its environment (as
    setproctitle does).
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            raw = file.read()
    except OSError:
        return None
    if b"=" not in raw:
        return None
    entries = (os.fsdecode(e).partition("=") for e in raw.split(b"\0") if e.startswith(_PREFIX.encode()))
    return {name: value for name, _, value in entries}


def same_state(value: str, state_dir: str | os.PathLike[str]) -> bool:
    """Whether a TANGRAM_STATE marker (an absolute path) names this directory, by whatever path."""
    return value.startswith("/") and os.path.realpath(value) == os.path.realpath(state_dir)


def find_processes(state_dir: str | os.PathLike[str]) -> list[Found]:
    """All live Instances and processes of ours of a state directory that run as the caller's user.

    The caller and its ancestors are excepted. Descendants of an Instance carry its markers too; `leaders` picks those
    that were started by us.
    """
    user = os.geteuid()
    found = []
    for pid in _others():
        markers = read_markers(pid)
        # A shell in which somebody has set TANGRAM_STATE alone is none of ours.
        if not markers or not (INSTANCE in markers or ROLE in markers):
            continue
        if not same_state(markers.get(STATE, ""), state_dir):
            continue
        stat = read_stat(pid)
        try:
            owner = os.stat(f"/proc/{pid}").st_uid  # noqa: PTH116
        except OSError:
            continue
        if stat is None or stat.dead or owner != user:
            continue
        found.append(Found(pid, stat.start_ticks, stat.ppid, stat.pgrp, stat.session, markers))
    return found


def leaders(found: Iterable[Found]) -> dict[str, Found]:
    """By Instance, the process that was started for it: the eldest that leads a session."""
    eldest: dict[str, Found] = {}
    for process in found:
        instance = process.env.get(INSTANCE, "")
        if not instance or process.session != process.pid:
            continue
        other = eldest.get(instance)
        if other is None or (process.start_ticks, process.pid) < (other.start_ticks, other.pid):
            eldest[instance] = process
    return eldest


# --- starting ------------------------------------------------------------------------------------------------------


def child_environment(
    inherited: Mapping[str, str], extra: Mapping[str, str], markers: Mapping[str, str]
) -> dict[str, str]:
    """The starter's environment without its own TANGRAM_ variables (markers, tokens), then `extra`, then `markers`."""
    return {k: v for k, v in inherited.items() if not k.startswith(_PREFIX)} | dict(extra) | dict(markers)


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    log: Path,
    cwd: Path | None = None,
    wrapper: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a process that leads a session, reads nothing, writes to the log, and outlives the caller; its pid.

    `env` is the whole environment. `wrapper` is put before argv and must exec it. The caller has to reap the process
    (`reap`). Raises SpawnError.
    """
    check_command(argv, env, cwd)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SpawnError(f"log file {log} cannot be opened: {error.strerror}; make its folder writable") from error
    try:
        process = subprocess.Popen(
            [*wrapper, *argv],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SpawnError(f"command {argv[0]!r} cannot be started: {reason}; check command and env") from error
    finally:
        os.close(output)
    # The exit is awaited and reaped by pidfd; without this, Popen would warn about it and reap it by itself.
    process.returncode = 0
    _await_environment(process.pid)
    return process.pid


def _await_environment(pid: int) -> None:
    """Until the process can be found by its markers: exec reports success a moment before they can be read."""
    until = time.monotonic() + _EXEC_WAIT_S
    while read_markers(pid) is None and time.monotonic() < until:
        stat = read_stat(pid)
        if stat is None or stat.dead:
            return
        time.sleep(0.0005)


def check_command(argv: Sequence[str], env: Mapping[str, str], cwd: Path | None) -> None:
    """Raises SpawnError where a command cannot be what was meant: empty, not there, not executable, no such folder."""
    if not argv or not argv[0]:
        raise SpawnError("command is empty; give the program to start and its arguments")
    if cwd is not None and not cwd.is_dir():
        raise SpawnError(f"workingDir {str(cwd)!r} is not a folder; create it or give another")
    program = argv[0]
    if "/" not in program:
        if shutil.which(program, path=env.get("PATH", os.defpath)) is None:
            raise SpawnError(f"command {program!r} is not found on PATH; install it or give its full path")
        return
    path = Path(cwd or "", program)
    if not path.is_file():
        raise SpawnError(f"command {program!r} is not a file (looked for {path}); give the path of a program")
    if not os.access(path, os.X_OK):
        raise SpawnError(f"command {program!r} is not executable; run chmod +x on it or start it by its interpreter")


# --- watching ------------------------------------------------------------------------------------------------------


def open_process(pid: int, start_ticks: int) -> int | None:
    """A pidfd of exactly this process (close it); None where it is gone. Readable when the process has ended."""
    if pid <= 1 or start_ticks <= 0:
        return None
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stat = read_stat(pid)
    if stat is None or stat.start_ticks != start_ticks:
        os.close(fd)
        return None
    return fd


def has_ended(fd: int) -> bool:
    """Whether the process of a pidfd has ended, reaped or not."""
    return bool(select.select([fd], [], [], 0)[0])


def reap(fd: int) -> int | None:
    """Exit code of an ended child as subprocess has it (negative: signal); None where another process reaps it."""
    try:
        result = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


# --- ending --------------------------------------------------------------------------------------------------------


def signal_process(pid: int, start_ticks: int, signum: int) -> bool:
    """Send a signal to exactly this process; False where it is gone or may not be signalled."""
    fd = open_process(pid, start_ticks)
    if fd is None:
        return False
    try:
        signal.pidfd_send_signal(fd, signum)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


def signal_group(leader: int, signum: int) -> None:
    """Send a signal to the process group of a leader that is known to exist; ValueError for the caller's own."""
    if leader <= 1 or leader == os.getpgrp():
        raise ValueError(f"process group {leader} is not an Instance's")
    try:
        os.killpg(leader, signum)
    except ProcessLookupError:
        pass
    except PermissionError:
        # Everything that is left of the group runs as another user.
        pass


def leftovers(
    leader: int, start_ticks: int, *, state_dir: str | os.PathLike[str], instance: str, witnessed: bool
) -> list[Stat]:
    """What still lives of an Instance without its leader: by its markers, and by its session.

    `witnessed` says that the caller has seen (leader, start_ticks) alive as the Instance until it ended; a record alone
    may be of another boot. Without it the session counts only where one of its members carries the markers.
    """
    marked = marked_processes(state_dir, instance)
    members = session_members(leader, start_ticks)
    if not witnessed and not any(s.session == leader for s in marked):
        members = []
    return [s for s in {s.pid: s for s in (*members, *marked)}.values() if s.pid != leader]


def session_members(leader: int, start_ticks: int) -> list[Stat]:
    """Live processes, the leader not among them, of the session that (leader, start_ticks) began."""
    if leader <= 1 or start_ticks <= 0 or leader == os.getsid(0):
        return []
    now = read_stat(leader)
    if now is not None and now.start_ticks != start_ticks:
        # The number is another process's, which it can be only when the session was empty.
        return []
    stats = (read_stat(pid) for pid in _others() if pid != leader)
    # A session cannot be older than its leader.
    return [s for s in stats if s and not s.dead and s.session == leader and s.start_ticks >= start_ticks]


def marked_processes(state_dir: str | os.PathLike[str], instance: str) -> list[Stat]:
    """Live processes that carry an Instance's markers, whatever their session."""
    marked: list[Stat] = []
    if not instance:
        return marked
    for pid in _others():
        markers = read_markers(pid)
        if markers and markers.get(INSTANCE) == instance and same_state(markers.get(STATE, ""), state_dir):
            stat = read_stat(pid)
            if stat is not None and not stat.dead:
                marked.append(stat)
    return marked


def kill_until_gone(left: Callable[[], list[Stat]]) -> list[int]:
    """SIGKILL whatever `left` returns until it returns nothing; the pids that outlive even that. Blocks."""
    until = time.monotonic() + _KILL_WAIT_S
    while (remaining := left()) and time.monotonic() < until:
        for stat in remaining:
            signal_process(stat.pid, stat.start_ticks, signal.SIGKILL)
        time.sleep(0.005)
    return [s.pid for s in remaining]


def end_processes(processes: Iterable[Found], grace_s: float) -> list[Found]:
    """SIGTERM to all, SIGKILL after grace_s, and to what is left of their sessions; blocks until they are gone.

    A process group is signalled as one, by its leader, so that no member gets the signal twice. Returns those that
    outlive even SIGKILL.
    """
    watched = {fd: p for p in processes if (fd := open_process(p.pid, p.start_ticks)) is not None}
    live = dict(watched)
    try:
        _signal_all(live, signal.SIGTERM)
        _await_ended(live, grace_s)
        if live:
            _signal_all(live, signal.SIGKILL)
            _await_ended(live, _KILL_WAIT_S)
    finally:
        for fd in watched:
            os.close(fd)
    for process in watched.values():
        if process.session == process.pid:
            kill_until_gone(partial(session_members, process.pid, process.start_ticks))
    return list(live.values())


def _signal_all(live: Mapping[int, Found], signum: int) -> None:
    groups = {p.pid for p in live.values() if p.pgrp == p.pid}
    for fd, process in live.items():
        if process.pid in groups:
            signal_group(process.pid, signum)
        elif process.pgrp not in groups:
            try:
                signal.pidfd_send_signal(fd, signum)
            except (ProcessLookupError, PermissionError):
                continue


def _await_ended(live: dict[int, Found], limit_s: float) -> None:
    """Take out of `live` what ends within the limit."""
    poll = select.poll()
    for fd in live:
        poll.register(fd, select.POLLIN)
    until = time.monotonic() + limit_s
    while live:
        for fd, _ in poll.poll(max(0.0, until - time.monotonic()) * 1000):
            poll.unregister(fd)
            del live[fd]
        if time.monotonic() >= until:
            return


def _others() -> Iterator[int]:
    """Every pid but 1, the caller's and its ancestors'."""
    spared = {1}
    pid = os.getpid()
    while pid > 1:
        spared.add(pid)
        stat = read_stat(pid)
        pid = stat.ppid if stat is not None else 0
    names = os.listdir("/proc")  # noqa: PTH208
    return (pid for pid in map(int, filter(str.isdecimal, names)) if pid not in spared)
