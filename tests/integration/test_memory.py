"""What was learned on the live replicas is known to the controller's successor, without a request more."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]


async def test_the_capacity_is_known_after_a_restart_of_the_controller(installation: Any, make_load: Any) -> None:
    document = installation.document(scaling="minReplicas: 1, maxReplicas: 1")
    installation.write(document + "  traffic: {concurrencyPerReplica: 1}\n")
    installation.up()
    installation.wait_ready(1)

    def view() -> Any:
        return installation.get("/models/who") or {}

    async def until(look: Any, what: str) -> Any:
        return await asyncio.to_thread(installation.wait_for, look, 60.0, what, installation.told)

    async with make_load(clients=1, delay_ms=20, pause_s=0.05).running():
        before = await until(lambda: view().get("capacity"), "the capacity is known")
    term = installation.get("/status")["term"]
    os.kill(installation.pid("controller"), signal.SIGTERM)
    await until(lambda: (installation.get("/status") or {}).get("term", 0) > term, "another controller")
    after = await until(lambda: view().get("capacity"), "it knows the capacity")
    assert 0.3 * before < after < 3.0 * before
    installation.wait_ready(1)
    assert "is not used" not in (installation.state / "controller.log").read_text()
