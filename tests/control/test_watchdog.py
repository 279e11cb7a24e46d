from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.heartbeat import BEAT_S, HEARTBEAT, Heartbeat
from tangram.control.watchdog import LOOK_S, START_S, Listener, Silence


def looks(silence: Silence, begin: float, end: float, step: float = 1.0) -> float | None:
    """Look until silence is broken; when that was."""
    now = begin
    while now <= end:
        if silence.broken(now) is not None:
            return now
        now += step
    return None


def test_silence_beyond_the_bound_is_told_once() -> None:
    silence = Silence(10.0, 0.0, new=False)
    assert looks(silence, 1.0, 100.0) == 10.0
    assert looks(silence, 11.0, 100.0) == 20.0


def test_who_is_heard_is_well() -> None:
    silence = Silence(10.0, 0.0, new=False)
    for now in range(1, 200):
        assert silence.broken(float(now)) is None
        if now % 9 == 0:
            silence.heard()


def test_a_new_process_has_time_to_begin_and_is_held_to_the_bound_from_its_first_beat() -> None:
    silence = Silence(10.0, 0.0, new=True)
    assert looks(silence, 1.0, START_S - 1) is None
    silence.heard()
    assert looks(silence, START_S, START_S + 100) == START_S + 9
    assert looks(Silence(10.0, 0.0, new=True), 1.0, 1000.0) == START_S


@pytest.mark.parametrize("pause_s", [11.0, 3600.0, 1e6])
def test_a_pause_of_all_is_one_look_however_long(pause_s: float) -> None:
    silence = Silence(10.0, 0.0, new=False)
    assert looks(silence, 1.0, 6.0) is None
    assert silence.broken(6.0 + pause_s) is None
    assert silence.broken(6.0 + pause_s + LOOK_S - 0.1) is None
    silence.heard()
    assert silence.broken(6.0 + pause_s + LOOK_S) is None


def test_looks_that_come_late_do_not_count_for_more_than_was_looked() -> None:
    silence = Silence(10.0, 0.0, new=False)
    assert looks(silence, 60.0, 1000.0, step=60.0) == 60.0 * 10.0 / LOOK_S


async def test_a_loop_that_turns_is_heard_and_one_that_does_not_is_not(tmp_path: Path, monkeypatch) -> None:
    listener = Listener(tmp_path / "heartbeat.sock")
    monkeypatch.setenv(HEARTBEAT, str(tmp_path / "heartbeat.sock"))
    heart = Heartbeat(asyncio.get_running_loop())
    assert listener.heard() == {os.getpid()}
    assert listener.heard() == set()
    await asyncio.get_running_loop().run_in_executor(None, select.select, [listener], [], [], 10 * BEAT_S)
    assert listener.heard() == {os.getpid()}
    heart.close()
    listener.close()
    assert not (tmp_path / "heartbeat.sock").exists()


async def test_a_beat_that_nobody_hears_harms_nobody(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(HEARTBEAT, str(tmp_path / "heartbeat.sock"))
    heart = Heartbeat(asyncio.get_running_loop())
    listener = Listener(tmp_path / "heartbeat.sock")
    for _ in range(2000):
        # Far more than the socket holds; whoever sends does not wait.
        heart._beat()
    assert listener.heard() == {os.getpid()}
    heart.close()
    listener.close()
    monkeypatch.delenv(HEARTBEAT)
    Heartbeat(asyncio.get_running_loop()).close()


def test_the_kernel_says_who_beat(tmp_path: Path) -> None:
    listener = Listener(tmp_path / "heartbeat.sock")
    script = "import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'', sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "heartbeat.sock")])
    assert process.wait() == 0
    assert listener.heard() == {process.pid}
    listener.close()


def test_a_socket_that_somebody_removed_is_made_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "state" / "heartbeat.sock"
    listener = Listener(path)
    assert listener.reachable()
    path.unlink()
    path.parent.rmdir()
    assert not listener.reachable()
    assert listener.reachable()
    monkeypatch.setenv(HEARTBEAT, str(path))
    loop = asyncio.new_event_loop()
    Heartbeat(loop).close()
    assert listener.heard() == {os.getpid()}
    loop.close()
    listener.close()
