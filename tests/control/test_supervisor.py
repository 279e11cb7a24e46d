"""The supervisor's decisions, on a process that has ended; what it does to real ones is in tests/integration."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gateway.heartbeat import HEARTBEAT
from tangram.control import supervisor
from tangram.control.parts import Part, parts_of
from tangram.control.paths import FILE_MARKER, ROLE_MARKER, STATE_MARKER, StatePaths, file_digest
from tangram.control.supervisor import Supervisor
from tangram.node.processes import has_ended, read_stat, spawn


@pytest.fixture
def paths(tmp_path: Path) -> StatePaths:
    paths = StatePaths(tmp_path / "state")
    paths.logs.mkdir(parents=True)
    return paths


def ran(part: Part, code: int, says: str, paths: StatePaths) -> Part:
    """The part with a process that said so and ended."""
    script = f"import sys; print({says!r}, file=sys.stderr); sys.exit({code})"
    log = paths.log(part.role)
    part.log_offset = log.stat().st_size if log.exists() else 0
    pid = spawn([sys.executable, "-c", script], dict(os.environ), log, paths.root)
    stat = read_stat(pid)
    part.pid, part.start_ticks, part.fd = pid, stat.start_ticks if stat else 0, os.pidfd_open(pid)
    part.started_at = time.monotonic()
    while not has_ended(part.fd):
        time.sleep(0.001)
    return part


def controller() -> Part:
    return Part("controller", [], {})


def test_a_controller_that_cannot_run_at_all_ends_up_with_its_words(
    paths: StatePaths, capfd: pytest.CaptureFixture[str]
) -> None:
    part = controller()
    assert Supervisor(paths, [part])._ended(ran(part, 2, "error: the file is wrong", paths)) == 2
    assert capfd.readouterr().err == "tangram: the file is wrong\n"


def test_one_that_worked_before_is_tried_again(paths: StatePaths, capfd: pytest.CaptureFixture[str]) -> None:
    part = controller()
    watched = Supervisor(paths, [part])
    assert watched._ended(ran(part, 1, "Traceback", paths)) is None
    assert watched._ended(ran(part, 2, "error: the database is broken", paths)) is None
    assert part.start_at is not None
    assert part.start_at > time.monotonic() - 1
    assert "controller: the database is broken" in capfd.readouterr().out


def test_what_keeps_ending_waits_longer_each_time(paths: StatePaths) -> None:
    part = Part("worker-0", [], {})
    watched = Supervisor(paths, [part])
    delays = []
    for _ in range(4):
        watched._ended(ran(part, 1, "no", paths))
        assert part.start_at is not None
        delays.append(round(part.start_at - time.monotonic(), 1))
    assert delays == [0.0, 0.2, 0.5, 1.0]
    ran(part, 1, "no", paths).started_at -= supervisor.PROVEN_S
    watched._ended(part)
    assert part.failures == 1


@pytest.mark.parametrize(("number", "plain"), [(signal.SIGSEGV, True), (signal.SIGABRT, True), (signal.SIGKILL, False)])
def test_a_worker_that_crashed_runs_plain_python(paths: StatePaths, number: int, plain: bool) -> None:
    part = Part("worker-0", ["python", "-m", "gateway.worker"], {}, listen=("127.0.0.1", 1))
    watched = Supervisor(paths, [part])
    script = f"import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); os.kill(os.getpid(), {number})"
    for _ in range(2):
        part.pid = spawn([sys.executable, "-c", script], dict(os.environ), paths.log(part.role), paths.root)
        part.fd = os.pidfd_open(part.pid)
        while not has_ended(part.fd):
            time.sleep(0.001)
        watched._ended(part)
    assert part.argv == ["python", "-m", "gateway.worker", *(["--no-native"] if plain else [])]


def test_a_log_that_is_gone_costs_the_last_words_only(paths: StatePaths) -> None:
    part = controller()
    ran(part, 2, "error: x", paths)
    paths.log("controller").unlink()
    assert Supervisor(paths, [part])._ended(part) == 2


def test_a_part_that_cannot_be_started_is_tried_later(paths: StatePaths, capfd: pytest.CaptureFixture[str]) -> None:
    part = Part("controller", ["/no/such/program"], {}, start_at=0.0)
    Supervisor(paths, [part]).start_due()
    assert not part.running
    assert part.start_at is not None
    assert part.start_at > time.monotonic()
    assert "trying again" in capfd.readouterr().out


def test_parts_carry_what_finds_and_tells_them_apart(tmp_path: Path, paths: StatePaths) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("x")
    options = argparse.Namespace(
        file=str(file),
        listen="127.0.0.1:8080",
        admin="127.0.0.1:8081",
        workers=2,
        log_json=False,
        require_key=False,
        advise=False,
        no_fast_path=False,
        no_native=False,
        tls_cert=None,
        tls_key=None,
    )
    first, *workers = parts_of(options, paths)
    assert first.markers == {
        STATE_MARKER: str(paths.root),
        ROLE_MARKER: "controller",
        HEARTBEAT: str(paths.heartbeat),
        FILE_MARKER: file_digest(file),
    }
    assert [w.role for w in workers] == ["worker-0", "worker-1"]
    assert all(w.listen == ("127.0.0.1", 8080) for w in workers)
    assert len({tuple(w.argv) for w in workers}) == 2
    file.write_text("y")
    assert parts_of(options, paths)[0].markers[FILE_MARKER] != first.markers[FILE_MARKER]
