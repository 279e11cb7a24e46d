"""kill -9 under load: what is lost is what the killed part held, and it is back.

How soon is measured by `python -m benchmarks.control`; here a bound only ends what would never come.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

BACK_S = 30.0


async def until(look: Callable[[], Any], timeout_s: float = BACK_S) -> Any:
    """Wait off the loop's time, so that the load goes on."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = await asyncio.to_thread(look)
        if seen or time.monotonic() > deadline:
            assert seen, f"not within {timeout_s} s"
            return seen
        await asyncio.sleep(0.05)


def nothing_in_flight(installation: Any) -> bool:
    models = installation.items("/models")
    return bool(models) and all(m["inFlight"] == 0 and m["queued"] == 0 for m in models)


def same_processes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    return {(r["name"], r["pid"]) for r in before} == {(r["name"], r["pid"]) for r in after}


async def test_of_a_replica_only_its_own_in_flight_requests_fail(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    first, other = installation.wait_ready(2)
    async with make_load(clients=6, delay_ms=20).running() as load:
        await load.flow()
        killed_at = time.monotonic()
        os.kill(first["pid"], signal.SIGKILL)
        await until(lambda: len(r := installation.replicas()) == 2 and first["pid"] not in {one["pid"] for one in r})
        await load.flow()
    # Requests in flight at the kill may fail, unless they are safe to repeat, as inference is.
    assert all(f.started <= killed_at <= f.ended for f in load.failures), load.failures
    back = {r["name"]: r for r in installation.replicas()}
    assert back[first["name"]]["pid"] != first["pid"]
    assert back[first["name"]]["restarts"] == 1
    assert back[other["name"]]["pid"] == other["pid"]
    await until(lambda: nothing_in_flight(installation))


@pytest.mark.parametrize("workers", [1, 2])
async def test_of_a_worker_only_its_connections_fail(installation: Any, make_load: Any, workers: int) -> None:
    installation.workers = workers
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    async with make_load(clients=8, delay_ms=20).running() as load:
        await load.flow()
        victim = installation.pid("worker-0")
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        await until(
            lambda: (
                (s := installation.get("/status"))
                and sum(w["connected"] for w in s["workers"]) == workers
                and all(w["pid"] != victim for w in s["workers"])
            )
        )
        await load.flow()
    # Each connection to the killed worker may lose one request; new connections wait for its successor.
    assert all(f.ended >= killed_at for f in load.failures), load.failures
    assert len(load.failures) <= load.clients
    assert same_processes(before, installation.replicas())
    await until(lambda: nothing_in_flight(installation))


@pytest.mark.parametrize("workers", [1, 2])
async def test_restarting_a_worker_loses_no_request(installation: Any, make_load: Any, workers: int) -> None:
    installation.workers = workers
    installation.write()
    installation.up()
    installation.wait_ready(2)
    async with make_load(clients=6, delay_ms=20).running() as load:
        await load.flow()
        leaving = installation.pid("worker-0")
        os.kill(leaving, signal.SIGTERM)
        await until(lambda: installation.pid("worker-0") != leaving, 20.0)
        await load.flow()
    assert load.failures == []


async def test_of_the_controller_no_request_fails_and_it_adopts_all(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    decisions = installation.items("/decisions")
    async with make_load().running() as load:
        await load.flow()
        victim = installation.pid("controller")
        term = installation.get("/status")["term"]
        os.kill(victim, signal.SIGKILL)
        await load.flow()
        status = await until(lambda: (s := installation.get("/status")) and s["term"] > term and s)
        assert status["term"] == term + 1
        await until(lambda: len(installation.replicas()) == 2)
        await load.flow()
    assert load.failures == []
    assert same_processes(before, installation.replicas())
    assert {d["id"] for d in decisions} <= {d["id"] for d in installation.items("/decisions")}
    assert [m["name"] for m in installation.items("/models")] == ["who"]
    await until(lambda: nothing_in_flight(installation))


async def test_of_the_supervisor_no_request_fails_and_a_second_up_adopts_all(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    parts = {role: installation.pid(role) for role in ("controller", "worker-0")}
    async with make_load().running() as load:
        await load.flow()
        installation.supervisor.kill()
        installation.supervisor.wait()
        await load.flow()
        installation.up()
        await load.flow()
        await until(lambda: len(installation.replicas()) == 2)
        # The adopted parts are watched again: the controller is back after a kill.
        os.kill(installation.pid("controller"), signal.SIGKILL)
        await until(lambda: installation.pid("controller") != parts["controller"] and installation.get("/status"))
        await load.flow()
    assert load.failures == []
    assert same_processes(before, installation.replicas())
    assert installation.pid("worker-0") == parts["worker-0"]
    assert installation.stop() == 0
    assert "nothing is left running" in installation.told()


async def test_a_second_up_whose_file_is_refused_leaves_what_serves(installation: Any, make_load: Any) -> None:
    """And when nothing runs any more, what the replicas had keeps nobody from another fleet."""
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    async with make_load().running() as load:
        await load.flow()
        installation.supervisor.kill()
        installation.supervisor.wait()
        installation.file.write_text(re.sub(r"name: gpu-", "name: other-", installation.file.read_text()))
        installation.up()
        assert await asyncio.to_thread(installation.supervisor.wait, 60) == 2
        assert "in use, so scale down first" in installation.told()
        assert "what ran before goes on, without a controller" in installation.told()
        await load.flow()
    assert load.failures == []
    for replica in before:
        os.kill(replica["pid"], signal.SIGKILL)
    installation.up()
    after = installation.wait_ready(2)
    assert not {r["name"] for r in after} & {r["name"] for r in before}
    assert all("/other-" in r["device"] for r in after)
    assert installation.stop() == 0


async def test_controller_killed_while_it_starts_replicas_starts_none_twice(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    installation.wait_ready(2)
    assert installation.run("set", "who", "--replicas", "4").returncode == 0
    for _ in range(3):
        os.kill(installation.pid("controller"), signal.SIGKILL)
        await asyncio.sleep(0.15)
    ready = installation.wait_ready(4)
    from tangram.node.processes import find_processes, leaders

    running = leaders(find_processes(installation.state))
    assert sorted(running) == sorted(r["name"] for r in ready)
    names = [p.env["TANGRAM_INSTANCE"] for p in find_processes(installation.state) if "TANGRAM_INSTANCE" in p.env]
    assert len([n for n in names if n in running]) == len(set(names)) == 4
