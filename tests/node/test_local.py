from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tangram.node import local, processes
from tangram.node.backend import Backend, InstancePhase, InstanceRecord, StartError, StartOrder
from tangram.node.local import LocalBackend

pytestmark = pytest.mark.integration

Make = Callable[..., StartOrder]
SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


def test_it_is_a_backend(backend: LocalBackend) -> None:
    contract: Backend = backend
    assert contract.statuses() == {}


def phase(backend: LocalBackend, instance: str = "digits-a") -> InstancePhase:
    return backend.statuses()[instance].phase


async def ready(backend: LocalBackend, changes: Any, order: StartOrder) -> int:
    """Start, wait until ready; the pid."""
    status = await backend.start(order)
    await changes.until(lambda: phase(backend, order.instance) is InstancePhase.READY)
    return status.pid


def record(backend: LocalBackend, order: StartOrder) -> InstanceRecord:
    status = backend.statuses()[order.instance]
    return InstanceRecord(order, status.pid, status.start_ticks, status.started_at, status.ready_at)


# --- starting and readiness ---


async def test_a_start_is_ready_soon_after_the_server_answers(
    backend: LocalBackend, changes: Any, order_of: Make
) -> None:
    order = order_of(port=backend.ports.allocate(), readiness_period_s=1.0)
    began = time.time()
    status = await backend.start(order)
    assert (status.phase, status.ready_at, status.adopted) == (InstancePhase.STARTING, None, False)
    assert abs(status.started_at - began) < 1.0
    await changes.until(lambda: phase(backend) is InstancePhase.READY)
    status = backend.statuses()["digits-a"]
    assert status.ready_at is not None and status.ready_at >= status.started_at
    assert status.message == ""
    assert changes.seen == ["digits-a"]


async def test_the_process_finds_its_markers_and_order_and_not_the_controllers_own(
    backend: LocalBackend, state: Path, changes: Any, order_of: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TANGRAM_ROLE", "controller")
    monkeypatch.setenv("TANGRAM_INSTANCE", "another")
    monkeypatch.setenv("INHERITED", "yes")
    odd = "a=b\nc 'ü' \"$HOME\""
    seen = "dict(os.environ), os.getcwd(), sys.stdin.read(), os.getsid(0) == os.getpid()"
    code = f"import os,sys,json; print(json.dumps([{seen}]))"
    order = order_of("x", code, port=4711, env={"ODD": odd, "EMPTY": ""}, working_dir=tmp_path, cpu_cores=0.25)
    await backend.start(order)
    await changes.until(lambda: phase(backend, "x") is InstancePhase.EXITED)
    env, folder, stdin, leads = json.loads(backend.log_path("x").read_text())
    assert {k: v for k, v in env.items() if k.startswith("TANGRAM_")} == {
        "TANGRAM_STATE": str(state),
        "TANGRAM_INSTANCE": "x",
        "TANGRAM_MODEL": "digits",
        "TANGRAM_REVISION": "0a1b2c3d",
        "TANGRAM_PORT": "4711",
        "TANGRAM_READINESS_PATH": "/ready",
        "TANGRAM_CPU_SHARE": "0.25",
        "TANGRAM_CPU_CORES": "0.25",
        "TANGRAM_CPU_FILE": str(state / "cpu" / "x"),
    }
    assert (env["ODD"], env["EMPTY"], env["INHERITED"]) == (odd, "", "yes")
    assert (folder, stdin, leads) == (str(tmp_path), "", True)


async def test_what_cannot_be_started_says_why(backend: LocalBackend, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("text")

    async def refused(*argv: str, cwd: Path | None = None, env: dict[str, str] | None = None, name: str = "a") -> str:
        with pytest.raises(StartError) as caught:
            await backend.start(StartOrder(name, "m", "r", argv, env or {}, 1, working_dir=cwd))
        return str(caught.value)

    assert "'no-such-program' is not found on PATH" in await refused("no-such-program")
    assert "/no/such is not" not in await refused("/no/such")
    assert "is not a file" in await refused("/no/such")
    assert "is not executable" in await refused(str(plain))
    assert "is not a folder" in await refused("sleep", "1", cwd=tmp_path / "gone")
    assert "null byte" in await refused("sleep", "1\0")
    assert "environment variable name" in await refused("sleep", "1", env={"A=B": "c"})
    assert "command is empty" in await refused()
    assert "no name" in await refused("sleep", "1", name="../a")
    assert backend.statuses() == {}


async def test_starting_twice_starts_once(backend: LocalBackend, changes: Any, order_of: Make, state: Path) -> None:
    order = order_of(port=backend.ports.allocate())
    first, second = await asyncio.gather(backend.start(order), backend.start(order))
    assert first.pid == second.pid
    await changes.until(lambda: phase(backend) is InstancePhase.READY)
    assert (await backend.start(order)).pid == first.pid
    assert len(processes.find_processes(state)) == 1


async def test_a_start_whose_caller_is_cancelled_is_not_lost(
    backend: LocalBackend, changes: Any, order_of: Make, state: Path
) -> None:
    order = order_of(port=backend.ports.allocate())
    caller = asyncio.create_task(backend.start(order))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    status = await backend.start(order)
    assert [p.pid for p in processes.find_processes(state)] == [status.pid]


async def test_a_server_that_never_answers_stays_starting_and_says_what_it_lacks(
    backend: LocalBackend, order_of: Make, until: Any
) -> None:
    await backend.start(order_of("mute", SLEEPER, port=backend.ports.allocate()))
    await until(lambda: "connection refused" in backend.statuses()["mute"].message)
    assert phase(backend, "mute") is InstancePhase.STARTING
    sick = order_of("lost", port=backend.ports.allocate(), readiness_path="/elsewhere")
    await backend.start(sick)
    await until(lambda: "GET /elsewhere" in backend.statuses()["lost"].message)
    await until(lambda: "status 404" in backend.statuses()["lost"].message)
    assert phase(backend, "lost") is InstancePhase.STARTING


async def test_a_sick_server_becomes_unready_and_recovers(
    backend: LocalBackend, changes: Any, order_of: Make, tmp_path: Path
) -> None:
    sick = tmp_path / "sick"
    await ready(backend, changes, order_of(port=backend.ports.allocate(), arguments=[sick]))
    first_ready = backend.statuses()["digits-a"].ready_at
    sick.touch()
    await changes.until(lambda: phase(backend) is InstancePhase.UNREADY)
    assert "status 503" in backend.statuses()["digits-a"].message
    sick.unlink()
    await changes.until(lambda: phase(backend) is InstancePhase.READY)
    assert backend.statuses()["digits-a"].message == ""
    assert backend.statuses()["digits-a"].ready_at == first_ready
    assert len(changes.seen) == 3


async def test_one_that_gives_no_answer_any_more_is_killed_and_said_so(
    backend: LocalBackend, changes: Any, order_of: Make
) -> None:
    order = order_of(port=backend.ports.allocate(), readiness_timeout_s=0.05, liveness_s=0.5)
    pid = await ready(backend, changes, order)
    os.kill(pid, signal.SIGSTOP)
    await changes.until(lambda: phase(backend) is InstancePhase.UNREADY)
    await changes.until(lambda: phase(backend) is InstancePhase.EXITED)
    status = backend.statuses()["digits-a"]
    assert status.exit_code == -signal.SIGKILL
    assert "gave no answer to its probes" in status.message
    assert (await backend.start(order)).pid != pid
    await changes.until(lambda: phase(backend) is InstancePhase.READY)
    assert backend.statuses()["digits-a"].message == ""


async def test_one_that_answers_that_it_is_not_ready_and_one_that_starts_are_left_alone(
    backend: LocalBackend, changes: Any, order_of: Make, tmp_path: Path, until: Any
) -> None:
    sick = tmp_path / "sick"
    settings = {"readiness_timeout_s": 0.05, "liveness_s": 0.3}
    await ready(backend, changes, order_of(port=backend.ports.allocate(), arguments=[sick], **settings))
    loading = order_of("loads", "import time; time.sleep(600)", port=backend.ports.allocate(), **settings)
    await backend.start(loading)
    sick.touch()
    await changes.until(lambda: phase(backend) is InstancePhase.UNREADY)
    instance = backend._instances["loads"]
    await until(lambda: instance._unanswered and time.monotonic() - instance._unanswered[0] > 1.0)
    assert phase(backend) is InstancePhase.UNREADY
    assert phase(backend, "loads") is InstancePhase.STARTING


async def test_a_program_without_environment_or_python_is_served_too(
    backend: LocalBackend, changes: Any, order_of: Make
) -> None:
    plain = order_of(port=backend.ports.allocate())
    order = StartOrder("bare", "m", "r", ("env", "-i", *plain.argv), {}, plain.port, readiness_path="/ready")
    await ready(backend, changes, order)


# --- the end of a process ---


async def test_kill_9_is_seen_at_once(backend: LocalBackend, changes: Any, order_of: Make) -> None:
    pid = await ready(backend, changes, order_of(port=backend.ports.allocate(), readiness_period_s=60.0))
    os.kill(pid, signal.SIGKILL)
    await changes.until(lambda: phase(backend) is InstancePhase.EXITED, within_s=5.0)
    status = backend.statuses()["digits-a"]
    assert status.exit_code == -signal.SIGKILL
    assert status.exited_at is not None and status.exited_at >= status.started_at


async def test_a_crash_tells_its_code_and_its_last_words_of_this_run(
    backend: LocalBackend, changes: Any, order_of: Make
) -> None:
    await backend.start(
        order_of("x", "import sys; print('first run', flush=True); sys.exit('no weights\\t in \\x1b[1mfile\\n\\n')")
    )
    await changes.until(lambda: phase(backend, "x") is InstancePhase.EXITED)
    status = backend.statuses()["x"]
    assert (status.exit_code, status.message) == (1, "no weights  in  [1mfile")

    await backend.start(order_of("x", "raise SystemExit(3)"))
    await changes.until(lambda: phase(backend, "x") is InstancePhase.EXITED)
    status = backend.statuses()["x"]
    assert (status.exit_code, status.message) == (3, "")
    assert "first run" in backend.log_path("x").read_text()


async def test_an_instance_starts_again_under_its_name(backend: LocalBackend, changes: Any, order_of: Make) -> None:
    order = order_of(port=backend.ports.allocate())
    for _ in range(3):
        pid = await ready(backend, changes, order)
        os.kill(pid, signal.SIGKILL)
        await changes.until(lambda: phase(backend) is InstancePhase.EXITED)
    assert (await backend.start(order)).exited_at is None


FAMILY = """
import os, signal, sys, time
def child(leave):
    if os.fork() == 0:
        if leave: os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN if len(sys.argv) > 2 else signal.SIG_DFL)
        print("child", os.getpid(), flush=True)
        time.sleep(600)
child(False)
child(True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
time.sleep(600)
"""


async def family(backend: LocalBackend, order: StartOrder, until: Any) -> tuple[int, list[int]]:
    pid = (await backend.start(order)).pid
    log = backend.log_path(order.instance)
    await until(lambda: log.read_text().count("child") == 2)
    return pid, [int(line.split()[1]) for line in log.read_text().splitlines()]


async def test_what_a_crash_leaves_is_ended_before_exited_is_said(
    backend: LocalBackend, changes: Any, order_of: Make, until: Any, running: Any
) -> None:
    pid, children = await family(backend, order_of("x", FAMILY, arguments=["stubborn"]), until)
    assert all(map(running, children))
    os.kill(pid, signal.SIGKILL)
    await changes.until(lambda: phase(backend, "x") is InstancePhase.EXITED)
    assert not any(map(running, children))


async def test_stop_ends_the_whole_family(backend: LocalBackend, order_of: Make, until: Any, running: Any) -> None:
    pid, children = await family(backend, order_of("x", FAMILY), until)
    await backend.stop("x", grace_s=0.3)
    assert not any(map(running, [pid, *children]))
    status = backend.statuses()["x"]
    assert (status.phase, status.exit_code, status.message) == (InstancePhase.EXITED, 0, "")


async def test_stop_asks_first_and_kills_after_the_grace_period(
    backend: LocalBackend, changes: Any, order_of: Make, until: Any
) -> None:
    await ready(backend, changes, order_of(port=backend.ports.allocate()))
    await backend.stop("digits-a", grace_s=60.0)
    assert backend.statuses()["digits-a"].exit_code == 7

    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    await backend.start(order_of("deaf", deaf))
    await until(lambda: "up" in backend.log_path("deaf").read_text())
    patient = asyncio.create_task(backend.stop("deaf", grace_s=60.0))
    await asyncio.sleep(0)
    await backend.stop("deaf", grace_s=0.05)
    await patient
    assert backend.statuses()["deaf"].exit_code == -signal.SIGKILL


async def test_a_start_during_a_stop_waits_for_it(backend: LocalBackend, changes: Any, order_of: Make) -> None:
    order = order_of(port=backend.ports.allocate())
    first = await ready(backend, changes, order)
    _, status = await asyncio.gather(backend.stop("digits-a", 60.0), backend.start(order))
    assert status.pid != first
    await changes.until(lambda: phase(backend) is InstancePhase.READY)


async def test_stop_and_forget_of_what_is_not_there_do_nothing(
    backend: LocalBackend, changes: Any, order_of: Make
) -> None:
    await backend.stop("unknown", 1.0)
    backend.forget("unknown")
    await ready(backend, changes, order_of(port=backend.ports.allocate()))
    backend.forget("digits-a")
    assert "digits-a" in backend.statuses()
    await backend.stop("digits-a", 60.0)
    await backend.stop("digits-a", 60.0)
    backend.forget("digits-a")
    assert backend.statuses() == {}
    assert backend.log_path("digits-a").exists()


async def test_forgetting_one_that_is_being_started_again_does_not_start_it_twice(
    backend: LocalBackend, changes: Any, order_of: Make, state: Path
) -> None:
    order = order_of("x", SLEEPER)
    os.kill((await backend.start(order)).pid, signal.SIGKILL)
    await changes.until(lambda: phase(backend, "x") is InstancePhase.EXITED)
    starting = asyncio.create_task(backend.start(order))
    for _ in range(3):
        await asyncio.sleep(0)
        backend.forget("x")
    again = await backend.start(order)
    assert (await starting).pid == again.pid
    assert [p.pid for p in processes.find_processes(state)] == [again.pid]


# --- adoption ---


async def test_a_second_backend_adopts_what_the_first_started(state: Path, changes: Any, order_of: Make) -> None:
    first = LocalBackend(state, changes)
    order = order_of(port=first.ports.allocate(), readiness_period_s=60.0)
    pid = await ready(first, changes, order)
    kept = record(first, order)
    await first.close()

    second = LocalBackend(state, changes)
    before = len(changes.seen)
    status = (await second.adopt([kept]))["digits-a"]
    assert (status.phase, status.pid, status.adopted) == (InstancePhase.READY, pid, True)
    assert (status.started_at, status.ready_at) == (kept.started_at, kept.ready_at)
    assert changes.seen[before:] == ["digits-a"]
    assert (await second.start(order)).pid == pid
    os.kill(pid, signal.SIGKILL)
    await changes.until(lambda: phase(second) is InstancePhase.EXITED, within_s=5.0)
    await second.close()


async def test_an_instance_that_no_record_knows_is_adopted_and_not_started_again(
    state: Path, changes: Any, order_of: Make
) -> None:
    first = LocalBackend(state, changes)
    order = order_of(port=first.ports.allocate(), cpu_cores=0.5)
    pid = await ready(first, changes, order)
    ticks = first.statuses()["digits-a"].start_ticks
    await first.close()

    second = LocalBackend(state, changes)
    status = (await second.adopt([]))["digits-a"]
    assert (status.instance, status.model, status.pid, status.start_ticks) == ("digits-a", "digits", pid, ticks)
    assert (status.port, status.phase, status.adopted) == (order.port, InstancePhase.READY, True)
    assert abs(status.started_at - time.time()) < 60.0
    assert (await second.start(order)).pid == pid
    assert second.ports.allocate() != order.port
    await second.stop("digits-a", 60.0)
    await second.close()

    # Nor where nobody asked for adoption before the start.
    third, fourth = LocalBackend(state, changes), LocalBackend(state, changes)
    pid = (await third.start(order)).pid
    again = await fourth.start(order)
    assert (again.pid, again.adopted) == (pid, True)
    await asyncio.gather(third.close(), fourth.close())


async def test_a_record_whose_pid_belongs_to_another_process_is_not_adopted(
    state: Path, backend: LocalBackend, order_of: Make, running: Any
) -> None:
    stranger = processes.spawn(order_of("x", SLEEPER).argv, dict(os.environ), state / "stranger.log")
    try:
        stat = processes.read_stat(stranger)
        assert stat is not None
        wrong_time = InstanceRecord(order_of("x", SLEEPER), stranger, stat.start_ticks - 1)
        statuses = await backend.adopt([wrong_time])
        await backend.stop("x", 0.0)
        assert running(stranger)
        assert statuses["x"].phase is InstancePhase.EXITED
        assert (statuses["x"].exit_code, statuses["x"].adopted) == (None, True)
    finally:
        os.kill(stranger, signal.SIGKILL)


async def test_another_installation_and_another_instance_are_left_alone(
    tmp_path: Path, state: Path, backend: LocalBackend, changes: Any, order_of: Make, running: Any
) -> None:
    other = LocalBackend(tmp_path / "other", changes)
    theirs = await other.start(order_of("theirs", SLEEPER))
    ours = await backend.start(order_of("ours", SLEEPER))
    assert set(await LocalBackend(tmp_path / "none", changes).adopt([])) == set()
    third = LocalBackend(tmp_path / "other", changes)
    mistaken = InstanceRecord(order_of("mistaken", SLEEPER), theirs.pid, theirs.start_ticks)
    statuses = await third.adopt([mistaken])
    assert statuses["mistaken"].phase is InstancePhase.EXITED
    assert statuses["theirs"].pid == theirs.pid
    assert running(ours.pid) and running(theirs.pid)
    await third.stop_all(0.0)
    await asyncio.gather(other.close(), third.close())


async def test_an_instance_without_markers_is_adopted_by_its_record(state: Path, changes: Any, order_of: Make) -> None:
    first = LocalBackend(state, changes)
    plain = order_of(port=first.ports.allocate())
    order = StartOrder("bare", "m", "r", ("env", "-i", *plain.argv), {}, plain.port, readiness_path="/ready")
    pid = await ready(first, changes, order)
    kept = record(first, order)
    await first.close()
    second = LocalBackend(state, changes)
    status = (await second.adopt([kept]))["bare"]
    assert (status.pid, status.phase) == (pid, InstancePhase.READY)
    await second.stop("bare", 60.0)
    await second.close()


async def test_an_instance_that_ended_unwatched_leaves_nothing_behind(
    state: Path, changes: Any, order_of: Make, until: Any, running: Any
) -> None:
    first = LocalBackend(state, changes)
    order = order_of("x", FAMILY)
    pid, children = await family(first, order, until)
    kept = record(first, order)
    unknown, orphans = await family(first, order_of("y", FAMILY), until)
    await first.close()
    os.kill(pid, signal.SIGKILL)
    os.kill(unknown, signal.SIGKILL)
    # One that leads a session of its own would pass for the Instance.
    (leads,) = (p for p in orphans if os.getsid(p) == p)
    os.kill(leads, signal.SIGKILL)
    await until(lambda: not any(map(running, (pid, unknown, leads))))

    second = LocalBackend(state, changes)
    statuses = await second.adopt([kept])
    assert {name: s.phase for name, s in statuses.items()} == {"x": InstancePhase.EXITED}
    assert not any(map(running, [*children, *orphans]))
    await second.close()


async def test_one_that_was_ready_and_is_too_busy_to_answer_is_unready_not_starting(
    state: Path, changes: Any, order_of: Make
) -> None:
    first = LocalBackend(state, changes)
    order = order_of(port=first.ports.allocate(), readiness_timeout_s=0.1)
    pid = await ready(first, changes, order)
    kept = record(first, order)
    await first.close()
    os.kill(pid, signal.SIGSTOP)
    second = LocalBackend(state, changes)
    assert (await second.adopt([kept]))["digits-a"].phase is InstancePhase.UNREADY
    os.kill(pid, signal.SIGCONT)
    await changes.until(lambda: phase(second) is InstancePhase.READY)
    await second.stop_all(60.0)
    await second.close()


# --- measuring, cgroups ---


async def test_cpu_and_memory_are_measured_over_children(
    backend: LocalBackend, order_of: Make, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_MEASURE_S", 0.2)
    busy = "import os\nx = bytearray(50 << 20)\nos.fork()\nwhile True: pass"
    await backend.start(order_of("busy", busy))
    await backend.start(order_of("idle", SLEEPER))

    def measured() -> bool:
        busy, idle = backend.statuses()["busy"], backend.statuses()["idle"]
        grown = (busy.memory_mib or 0.0) >= 50.0 and (idle.memory_mib or 0.0) > 1.0
        return grown and bool(busy.cpu_percent) and idle.cpu_percent is not None

    await until(measured)
    busy_one, idle_one = backend.statuses()["busy"], backend.statuses()["idle"]
    assert idle_one.cpu_percent < busy_one.cpu_percent <= 100.0 * (os.cpu_count() or 1)
    # Pages that the two share count once.
    assert busy_one.memory_mib < 100.0
    assert idle_one.memory_mib < 40.0
    await backend.stop("busy", 0.0)
    assert backend.statuses()["busy"].memory_mib is None


async def test_a_cgroup_holds_the_cpu_from_readiness_on(
    state: Path, changes: Any, order_of: Make, tmp_path: Path
) -> None:
    parent = tmp_path / "cgroup"
    parent.mkdir()
    backend = LocalBackend(state, changes, cgroup_parent=parent)
    order = order_of(port=backend.ports.allocate(), cpu_cores=0.5)
    pid = (await backend.start(order)).pid
    (group,) = parent.iterdir()
    assert group.name.endswith("-digits-a")
    assert (group / "cpu.max").read_text().startswith("max ")
    await changes.until(lambda: phase(backend) is InstancePhase.READY)
    assert (group / "cpu.max").read_text() == "10000 20000"
    backend.resize("digits-a", 0.75)
    assert (group / "cpu.max").read_text() == "15000 20000"
    assert (state / "cpu" / "digits-a").read_text() == "0.75"
    backend.resize("nobody", 0.75)
    assert (processes.read_markers(pid) or {})["TANGRAM_CPU_SHARE"] == "0.5"
    # 0 is the writer itself, which then became the server.
    assert (group / "cgroup.procs").read_text() == "0\n"
    assert "TANGRAM_CPU_CORES" not in (processes.read_markers(pid) or {})
    for file in group.iterdir():
        file.unlink()
    await backend.stop("digits-a", 60.0)
    await backend.close()
    assert list(parent.iterdir()) == []
    assert list((state / "cpu").iterdir()) == []


async def test_an_instance_that_no_record_knows_is_held_to_its_share_too(
    state: Path, changes: Any, order_of: Make, tmp_path: Path
) -> None:
    parent = tmp_path / "cgroup"
    parent.mkdir()
    first = LocalBackend(state, changes, cgroup_parent=parent)
    await first.start(order_of(port=first.ports.allocate(), cpu_cores=0.5))
    await first.close()
    (group,) = parent.iterdir()
    assert (group / "cpu.max").read_text() == "max 20000"
    second = LocalBackend(state, changes, cgroup_parent=parent)
    await second.adopt([])
    await changes.until(lambda: phase(second) is InstancePhase.READY)
    assert (group / "cpu.max").read_text() == "10000 20000"
    await second.stop_all(60.0)
    await second.close()


async def test_where_a_cgroup_cannot_be_entered_the_instance_keeps_its_own_budget(
    state: Path, changes: Any, order_of: Make, tmp_path: Path
) -> None:
    backend = LocalBackend(state, changes, cgroup_parent=tmp_path / "cgroup")
    (tmp_path / "cgroup").mkdir()
    order = order_of("x", "import os; print('budget', os.environ['TANGRAM_CPU_CORES'])", cpu_cores=0.5)
    group = tmp_path / "cgroup" / backend._groups._path(tmp_path, "x").name
    (group / "cgroup.procs").mkdir(parents=True)
    await backend.start(order)
    await changes.until(lambda: phase(backend, "x") is InstancePhase.EXITED)
    assert backend.log_path("x").read_text().splitlines()[-1] == "budget 0.5"
    await backend.close()


# --- the whole ---


async def test_closing_leaves_processes_alone(state: Path, changes: Any, order_of: Make, running: Any) -> None:
    backend = LocalBackend(state, changes)
    pid = (await backend.start(order_of("x", SLEEPER))).pid
    await backend.close()
    assert running(pid)


async def test_stop_all(backend: LocalBackend, order_of: Make, state: Path) -> None:
    await asyncio.gather(*(backend.start(order_of(f"x{i}", SLEEPER)) for i in range(4)))
    await backend.stop_all(60.0)
    assert processes.find_processes(state) == []
    assert {s.phase for s in backend.statuses().values()} == {InstancePhase.EXITED}
