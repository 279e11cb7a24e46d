from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tangram.node import processes
from tangram.node.processes import Found, Stat

TICKS = os.sysconf("SC_CLK_TCK")
#: Signal 0 is never delivered: were a guard missing, these tests would still harm nobody.
NONE = 0


def own() -> Stat:
    stat = processes.read_stat(os.getpid())
    assert stat is not None
    return stat


# --- what may never be chosen ---


@pytest.mark.parametrize("leader", [0, 1, -1, -os.getpid()])
@pytest.mark.parametrize("start_ticks", [0, 1, -1])
def test_no_session_of_a_number_up_to_one_has_members(leader: int, start_ticks: int, tmp_path: Path) -> None:
    assert processes.session_members(leader, start_ticks) == []
    for witnessed in (False, True):
        left = processes.leftovers(leader, start_ticks, state_dir=tmp_path, instance="x", witnessed=witnessed)
        assert left == []


@pytest.mark.parametrize("start_ticks", [0, -1])
def test_a_session_whose_start_is_unknown_has_no_members(start_ticks: int) -> None:
    sessions = set()
    for pid in all_pids():
        with suppress(ProcessLookupError):
            sessions.add(os.getsid(pid))
    assert all(processes.session_members(session, start_ticks) == [] for session in sessions)


def all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def test_the_callers_own_session_has_no_members() -> None:
    for start_ticks in (1, own().start_ticks):
        assert processes.session_members(os.getsid(0), start_ticks) == []


def test_no_instance_and_no_state_directory_mark_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert processes.marked_processes(tmp_path, "") == []
    assert processes.marked_processes("", "") == []
    assert processes.leftovers(0, 0, state_dir="", instance="", witnessed=True) == []


@pytest.mark.parametrize("leader", [0, 1, -1, os.getpgrp()])
def test_signals_to_groups_that_are_not_an_instances_are_refused(leader: int) -> None:
    with pytest.raises(ValueError, match=f"process group {leader} is not an Instance's"):
        processes.signal_group(leader, NONE)


@pytest.mark.parametrize("pid", [0, 1, -1])
def test_signals_to_pids_up_to_one_are_not_sent(pid: int) -> None:
    stat = processes.read_stat(1)
    for start_ticks in (0, 1, stat.start_ticks if stat else 0):
        assert processes.open_process(pid, start_ticks) is None
        assert not processes.signal_process(pid, start_ticks, NONE)


def test_a_pid_without_its_start_time_means_nobody() -> None:
    me = own()
    assert not processes.signal_process(me.pid, 0, NONE)
    assert not processes.signal_process(me.pid, me.start_ticks + 1, NONE)
    assert processes.signal_process(me.pid, me.start_ticks, NONE)


def test_what_was_never_there_is_not_ended(tmp_path: Path) -> None:
    gone = [Found(pid, ticks, 1, pid, pid, {}) for pid in (0, 1, 2**22 + 1) for ticks in (0, 1)]
    assert processes.end_processes(gone, 0.0) == []


# --- reading ---


def test_a_stat_line_is_read_whatever_the_commands_name() -> None:
    text = "42 (a) b (c d) S 7 42 41 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 987654 1 2\n"
    stat = processes.parse_stat(text)
    assert stat == Stat(42, "S", 7, 42, 41, 127, 987654)
    assert not stat.dead
    assert stat._replace(state="Z").dead


def test_a_process_that_is_gone_has_no_stat_and_no_markers() -> None:
    assert processes.read_stat(2**22 + 1) is None
    assert processes.read_markers(2**22 + 1) is None
    assert processes.open_process(2**22 + 1, 5) is None


def test_own_stat_and_age_are_true() -> None:
    me = own()
    assert (me.pid, me.ppid, me.pgrp, me.session) == (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
    assert 0.0 < processes.age_s(me.start_ticks) <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_state_directory_is_the_same_by_whatever_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    monkeypatch.chdir(tmp_path)
    assert processes.same_state(str(tmp_path / "link"), real)
    assert processes.same_state(str(tmp_path / "x" / ".." / "real"), Path("real"))
    assert not processes.same_state(str(tmp_path), real)
    assert not processes.same_state("real", real), "relative to whom?"
    assert not processes.same_state("", tmp_path)


def test_a_child_gets_no_markers_of_its_starter() -> None:
    inherited = {"PATH": "/bin", "TANGRAM_TOKEN": "secret", "TANGRAM_INSTANCE": "a", "LANG": "C"}
    made = processes.child_environment(inherited, {"LANG": "de", "TANGRAM_PORT": "1"}, {"TANGRAM_PORT": "2"})
    assert made == {"PATH": "/bin", "LANG": "de", "TANGRAM_PORT": "2"}


def found(pid: int, start_ticks: int, session: int, **markers: str) -> Found:
    return Found(pid, start_ticks, 1, pid, session, {f"TANGRAM_{k.upper()}": v for k, v in markers.items()})


def test_the_eldest_session_leader_is_the_instances() -> None:
    there = [
        found(30, 300, 30, instance="a"),
        found(20, 200, 20, instance="a"),
        found(10, 100, 9, instance="a"),
        found(40, 50, 40, role="controller"),
        found(50, 500, 50, instance="b"),
    ]
    assert {name: p.pid for name, p in processes.leaders(there).items()} == {"a": 20, "b": 50}


# --- with real processes ---


@pytest.fixture
def start(state: Path) -> Callable[..., int]:
    """Start a Python program marked as Instance x of the state directory; its pid."""

    def start(code: str, *arguments: object, markers: Mapping[str, str] | None = None) -> int:
        markers = {processes.STATE: str(state), processes.INSTANCE: "x"} if markers is None else markers
        argv = (sys.executable, "-I", "-S", "-c", code, *map(str, arguments))
        return processes.spawn(argv, processes.child_environment(os.environ, {}, markers), state / "x.log")

    return start


@pytest.fixture
def ended() -> Iterator[list[tuple[int, int]]]:
    """(pid, start time) of processes without markers, to be ended with the test."""
    strangers: list[tuple[int, int]] = []
    yield strangers
    for pid, start_ticks in strangers:
        processes.signal_process(pid, start_ticks, signal.SIGKILL)


def ticks(pid: int) -> int:
    stat = processes.read_stat(pid)
    assert stat is not None
    return stat.start_ticks


def kill(pid: int) -> None:
    """Kill a child and reap it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


SLEEPER = "import time; print('up', flush=True); time.sleep(600)"
#: Starts a child without markers, in its own session or in a new one, and tells its pid.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], env={}, start_new_session="leave" in sys.argv)
print(child.pid, flush=True)
time.sleep(600)
"""


async def line(state: Path, until: Any) -> str:
    log = state / "x.log"
    await until(lambda: log.read_text().endswith("\n"))
    return log.read_text().splitlines()[-1]


@pytest.mark.integration
def test_a_process_is_found_by_its_markers_as_soon_as_it_is_started(start: Callable[..., int], state: Path) -> None:
    pids = {start(SLEEPER) for _ in range(20)}
    there = processes.find_processes(state)
    assert {p.pid for p in there} == pids
    assert all(p.env == {"TANGRAM_STATE": str(state), "TANGRAM_INSTANCE": "x"} for p in there)
    assert all(p.session == p.pgrp == p.pid and p.ppid == os.getpid() for p in there)
    assert {s.pid for s in processes.marked_processes(state, "x")} == pids
    assert processes.marked_processes(state, "y") == []
    assert processes.marked_processes(state.parent, "x") == []


@pytest.mark.integration
def test_a_shell_with_the_state_directory_in_its_environment_is_not_ours(
    start: Callable[..., int], state: Path, ended: list[tuple[int, int]]
) -> None:
    pid = start(SLEEPER, markers={processes.STATE: str(state)})
    ended.append((pid, ticks(pid)))
    assert processes.find_processes(state) == []


@pytest.mark.integration
async def test_a_caller_does_not_find_itself_nor_its_ancestors(
    start: Callable[..., int], state: Path, until: Any
) -> None:
    code = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from tangram.node import processes
if os.fork() == 0:
    if os.fork() == 0:
        chosen = [p.pid for p in processes.find_processes(sys.argv[2])]
        chosen += [s.pid for s in processes.marked_processes(sys.argv[2], "x")]
        chosen += [s.pid for s in processes.session_members(os.getsid(0), 1)]
        print(json.dumps([chosen, processes.INSTANCE in os.environ]), flush=True)
        os._exit(0)
    os.wait()
    os._exit(0)
os.wait()
"""
    start(code, Path(processes.__file__).parents[2], state)
    assert json.loads(await line(state, until)) == [[], True]


@pytest.mark.integration
async def test_a_session_is_the_instances_when_its_leader_was_seen_or_a_member_is_marked(
    start: Callable[..., int], state: Path, until: Any, ended: list[tuple[int, int]]
) -> None:
    leader = start(PARENT)
    started = ticks(leader)
    child = int(await line(state, until))
    ended.append((child, ticks(child)))
    kill(leader)

    def left(start_ticks: int, witnessed: bool) -> list[int]:
        chosen = processes.leftovers(leader, start_ticks, state_dir=state, instance="x", witnessed=witnessed)
        return [s.pid for s in chosen]

    assert left(started, witnessed=True) == [child]
    assert left(started, witnessed=False) == [], "a record of another boot may name a stranger's session"
    assert left(ticks(child) + 1, witnessed=True) == [], "no member is older than its leader"
    assert processes.kill_until_gone(lambda: processes.session_members(leader, started)) == []
    assert left(started, witnessed=True) == []


@pytest.mark.integration
async def test_a_marked_member_proves_the_whole_session(
    start: Callable[..., int], state: Path, until: Any, ended: list[tuple[int, int]]
) -> None:
    leader = start("import os\nif os.fork() == 0: os.environ['MARKED'] = '1'\n" + PARENT)
    started = ticks(leader)
    await until(lambda: (state / "x.log").read_text().count("\n") == 2)
    plain = [int(pid) for pid in (state / "x.log").read_text().split()]
    ended += [(pid, ticks(pid)) for pid in plain]
    kill(leader)
    chosen = processes.leftovers(leader, started, state_dir=state, instance="x", witnessed=False)
    assert {s.pid for s in chosen} > set(plain)
    assert len({s.pid for s in chosen}) == len(chosen) == 3


@pytest.mark.integration
async def test_a_living_process_that_got_the_leaders_number_keeps_its_session(
    start: Callable[..., int], state: Path, until: Any, ended: list[tuple[int, int]]
) -> None:
    leader = start(PARENT)
    child = int(await line(state, until))
    ended.append((child, ticks(child)))
    assert [s.pid for s in processes.session_members(leader, ticks(leader))] == [child]
    assert processes.session_members(leader, ticks(leader) - 1) == []


@pytest.mark.integration
async def test_ending_takes_the_session_but_not_a_child_that_left_it(
    start: Callable[..., int], state: Path, until: Any, running: Any, ended: list[tuple[int, int]]
) -> None:
    inside = start(PARENT)
    child = int(await line(state, until))
    outside = start(PARENT, "leave")
    await until(lambda: (state / "x.log").read_text().count("\n") == 2)
    stranger = int(await line(state, until))
    ended.append((stranger, ticks(stranger)))
    assert processes.end_processes(processes.find_processes(state), 5.0) == []
    assert not any(map(running, (inside, outside, child)))
    assert running(stranger)


@pytest.mark.integration
async def test_ending_asks_first_and_kills_the_deaf(start: Callable[..., int], state: Path, until: Any) -> None:
    polite = start(
        "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(3))\nprint(1, flush=True)\nsignal.pause()"
    )
    deaf = start("import signal\nsignal.signal(15, signal.SIG_IGN)\nprint(2, flush=True)\nsignal.pause()")
    await until(lambda: (state / "x.log").read_text().count("\n") == 2)
    handles = [os.pidfd_open(pid) for pid in (polite, deaf)]
    assert not any(map(processes.has_ended, handles))
    assert processes.reap(handles[0]) is None
    assert processes.end_processes(processes.find_processes(state), 1.0) == []
    assert all(map(processes.has_ended, handles))
    assert [processes.reap(fd) for fd in handles] == [3, -signal.SIGKILL]
    assert [processes.reap(fd) for fd in handles] == [None, None], "reaped already"
    for fd in handles:
        os.close(fd)


@pytest.mark.integration
def test_what_outlives_sigkill_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_KILL_WAIT_S", 0.02)
    sent: list[int] = []
    monkeypatch.setattr(processes, "signal_process", lambda pid, ticks, signum: sent.append(pid))
    stuck = Stat(2**22 + 1, "D", 1, 1, 1, 0, 5)
    assert processes.kill_until_gone(lambda: [stuck]) == [stuck.pid]
    assert set(sent) == {stuck.pid}


@pytest.mark.integration
def test_a_zombie_is_not_found(start: Callable[..., int], state: Path) -> None:
    pid = start("pass")
    fd = os.pidfd_open(pid)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    stat = processes.read_stat(pid)
    assert stat is not None and stat.dead
    assert processes.find_processes(state) == []
    assert processes.marked_processes(state, "x") == []
    assert processes.reap(fd) == 0
    os.close(fd)


@pytest.mark.integration
def test_a_log_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(processes.SpawnError, match=r"log file .*file/x\.log cannot be opened: .*; make its folder"):
        processes.spawn(["true"], {"PATH": os.defpath}, tmp_path / "file" / "x.log")


def test_a_command_is_looked_for_where_it_will_run(tmp_path: Path) -> None:
    program = tmp_path / "server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    def check(*argv: str, path: str = "", cwd: Path | None = tmp_path) -> None:
        processes.check_command(argv, {"PATH": path}, cwd)

    check("./server")
    check("server", path=str(tmp_path), cwd=None)
    bad: Sequence[tuple[str, str | None]] = [("./server", "elsewhere"), ("server", None)]
    (tmp_path / "elsewhere").mkdir()
    for command, folder in bad:
        with pytest.raises(processes.SpawnError, match="server"):
            check(command, cwd=tmp_path / folder if folder else tmp_path)
