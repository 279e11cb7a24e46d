"""SIGSTOP under load: what hangs is killed and replaced, and what only paused with all else is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

import pytest

from tangram.control.parts import CONTROLLER_SILENCE_S, WORKER_SILENCE_S

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def same_processes(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> bool:
    return {(r["name"], r["pid"]) for r in before} == {(r["name"], r["pid"]) for r in after}


async def until(installation: Any, look: Any, timeout_s: float) -> None:
    await asyncio.to_thread(installation.wait_for, look, timeout_s, "", installation.told)


async def test_a_stuck_worker_is_replaced_and_the_other_serves_on(installation: Any, make_load: Any) -> None:
    installation.workers = 2
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    victim, other = installation.pid("worker-0"), installation.pid("worker-1")
    async with make_load(clients=12, delay_ms=5).running() as load:
        await load.flow()
        stopped_at = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        # Connections to the other go on at once.
        await load.flow()
        await until(installation, lambda: installation.pid("worker-0") != victim, WORKER_SILENCE_S + 20)
        await load.flow(60)
    assert f"worker-0 (pid {victim}) has done nothing for" in installation.told()
    assert installation.pid("worker-1") == other
    assert same_processes(before, installation.replicas())
    # Each connection to the stuck worker lost the one request that it held; those not accepted yet were served late.
    assert all(f.ended >= stopped_at for f in load.failures), load.failures
    assert len(load.failures) <= load.clients
    await until(installation, lambda: all(w["connected"] for w in installation.get("/status")["workers"]), 10)


async def test_a_stuck_controller_is_replaced_and_no_request_fails(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    before = installation.wait_ready(2)
    victim, worker = installation.pid("controller"), installation.pid("worker-0")
    term = installation.get("/status")["term"]
    async with make_load().running() as load:
        await load.flow()
        os.kill(victim, signal.SIGSTOP)
        await until(installation, lambda: installation.pid("controller") != victim, CONTROLLER_SILENCE_S + 30)
        await until(installation, lambda: (s := installation.get("/status")) and s["term"] > term, 30)
        await until(installation, lambda: len(installation.replicas()) == 2, 10)
        await load.flow()
    assert load.failures == []
    assert same_processes(before, installation.replicas())
    assert installation.pid("worker-0") == worker


async def test_nobody_is_blamed_for_a_pause_of_the_whole_machine(installation: Any, make_load: Any) -> None:
    installation.write()
    installation.up()
    installation.wait_ready(2)
    assert installation.supervisor is not None
    parts = {role: installation.pid(role) for role in ("controller", "worker-0")}
    everybody = [installation.supervisor.pid, *parts.values()]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    # As long as it takes to be thought stuck, and more.
    await asyncio.sleep(WORKER_SILENCE_S + 3)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    async with make_load().running() as load:
        await load.flow()
    assert load.failures == []
    # The supervisor has looked since then: it replaces what ends.
    os.kill(parts["controller"], signal.SIGKILL)
    await until(installation, lambda: installation.pid("controller") != parts["controller"], 10)
    assert installation.pid("worker-0") == parts["worker-0"]
    assert "has done nothing" not in installation.told()


async def test_a_lone_replica_that_hangs_is_replaced_and_its_requests_are_answered(
    installation: Any, make_load: Any
) -> None:
    liveness = "liveness: {periodSeconds: 1, failureThreshold: 4}"
    installation.write(installation.document(runtime=liveness, scaling="replicas: 1, maxReplicas: 1"))
    installation.up()
    (before,) = installation.wait_ready(1)
    async with make_load(clients=3).running() as load:
        await load.flow()
        os.kill(before["pid"], signal.SIGSTOP)
        await until(installation, lambda: (r := installation.replicas()) and r[0]["pid"] != before["pid"], 30)
        await load.flow()
    # They may be repeated: those that it held were sent to its successor, the others waited for it.
    assert load.failures == []
    (after,) = installation.replicas()
    assert (after["name"], after["restarts"]) == (before["name"], 1)
    crashed = [e for e in installation.items("/events?model=who") if e["reason"] == "Crashed"]
    assert len(crashed) == 1
    assert "gave no answer to its probes" in crashed[0]["message"]
