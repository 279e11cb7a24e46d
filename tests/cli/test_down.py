from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tangram.node.processes import find_processes

Tangram = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[bytes]"]

#: Takes the lock as the supervisor does, and ends by SIGTERM.
SUPERVISOR = """
import fcntl, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(lock, fcntl.LOCK_EX)
start_ticks = open("/proc/self/stat").read().rpartition(")")[2].split()[19]
os.write(lock, (sys.argv[2] if len(sys.argv) > 2 else f"{os.getpid()} {start_ticks}").encode())
print(flush=True)
signal.sigwait({signal.SIGTERM})
"""
#: Writes down the signal that ended it.
PART = """
import signal, sys
signals = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
print(flush=True)
with open(sys.argv[1], "a") as record:
    record.write(signal.Signals(signal.sigwait(signals)).name)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program with markers of the state directory; all are ended with the test."""
    (tmp_path / "state").mkdir()
    with ExitStack() as stack:

        def start(program: str, *arguments: object, **markers: object) -> subprocess.Popen[bytes]:
            environment = os.environ | {f"TANGRAM_{k.upper()}": str(v) for k, v in markers.items()}
            argv = [sys.executable, "-c", program, *map(str, arguments)]
            process = stack.enter_context(
                subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, start_new_session=True)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()
            return process

        yield start


def test_nothing_runs(tangram: Tangram, tmp_path: Path) -> None:
    ran = tangram("down", "--state", "nowhere")
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "state").mkdir()
    assert "nothing runs on" in tangram("down", "--state", "state").out


@pytest.mark.integration
def test_what_a_killed_supervisor_left_is_ended_in_order(tangram: Tangram, start: Start, tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "endpoints.json").write_text("{}")
    start(PART, tmp_path / "worker", state=state, role="worker-0")
    start(PART, tmp_path / "controller", state=state, role="controller")
    # A controller would have stopped it; where that failed, down does.
    start(PART, tmp_path / "replica", state=state, instance="digits-1")
    other = start(PART, tmp_path / "other", state=tmp_path / "other-state", instance="digits-1")
    ran = tangram("down", "--state", str(state))
    assert ran.code == 0, ran.err
    for part in ("worker-0", "the controller", "replica digits-1", "ended 3 processes"):
        assert part in ran.out
    signals = {name: (tmp_path / name).read_text() for name in ("worker", "controller", "replica")}
    assert signals == {"worker": "SIGTERM", "controller": "SIGINT", "replica": "SIGTERM"}
    assert find_processes(state) == []
    assert other.poll() is None
    assert not (state / "endpoints.json").exists()
    assert "nothing runs" in tangram("down", "--state", str(state)).out


@pytest.mark.integration
def test_a_live_supervisor_is_asked_to_stop(tangram: Tangram, start: Start, tmp_path: Path) -> None:
    supervisor = start(SUPERVISOR, tmp_path / "state" / "supervisor.lock")
    ran = tangram("down", "--state", "state")
    assert ran.code == 0, ran.err
    assert f"stopping the supervisor (pid {supervisor.pid})" in ran.out
    assert supervisor.wait(10) == 0


@pytest.mark.integration
@pytest.mark.parametrize("told", ["{pid}", "{pid} 1", "1 1", "0 0", "-1 5", "4194304 7", "", "who knows"])
def test_who_only_has_a_supervisors_number_is_not_signalled(
    tangram: Tangram, start: Start, tmp_path: Path, told: str
) -> None:
    lock = tmp_path / "state" / "supervisor.lock"
    stranger = start(PART, tmp_path / "stranger")
    start(SUPERVISOR, lock, told.format(pid=stranger.pid))
    ran = tangram("down", "--state", "state")
    assert ran.code != 0
    assert "is held by a process that is not a supervisor" in ran.err
    assert stranger.poll() is None
