"""A target far beyond what a replica can do hurts nobody for long: the capacity is learned on the live replicas."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

#: Works for as many milliseconds of CPU as the request says.
BUSY = """
import os, time
import numpy as np
from tangram.node.runtimes.embedded import Model, Tensor

class Busy(Model):
    inputs = [Tensor("delay_ms", "INT32", (1,))]
    outputs = [Tensor("pid", "INT32", (1,))]

    def predict(self, inputs):
        until = time.thread_time() + int(inputs["delay_ms"][0]) / 1000
        while time.thread_time() < until:
            pass
        return {"pid": np.array([os.getpid()], np.int32)}
"""
#: A replica has a tenth of a core, so it can do three of these a second; its target says fifty.
WORK_MS = 33
LATE_S = 2.0


async def test_a_target_far_too_high_is_seen_through_and_requests_are_in_time_again(
    installation: Any, make_load: Any
) -> None:
    scaling = "minReplicas: 1, maxReplicas: 8, targetQPS: 50, mode: honour"
    document = installation.document(scaling=scaling).replace("compute: 20", "compute: 10")
    installation.write(document + "  traffic: {concurrencyPerReplica: 1}\n")
    (installation.folder / "who.py").write_text(BUSY)
    installation.up()
    installation.wait_ready(1)

    async def until(look: Any, what: str, timeout_s: float = 90.0) -> Any:
        return await asyncio.to_thread(installation.wait_for, look, timeout_s, what, installation.told)

    def view() -> Any:
        return installation.get("/models/who") or {}

    async with make_load(clients=6, delay_ms=WORK_MS, pause_s=0.6).running() as load:
        await until(lambda: view().get("capacity"), "the capacity is known")
        # By its target one replica would do: six clients ask less than ten times a second.
        await until(lambda: len(installation.replicas()) >= 3, "more replicas than the target says")

        def in_time() -> bool:
            last = [o for o in load.outcomes if o.status == 200][-40:]
            return len(last) == 40 and sum(o.ended - o.started > LATE_S for o in last) <= 1

        await until(in_time, "forty requests in a row of which one is late at most")
        shown = view()
    assert load.failures == []
    assert 1.0 < shown["capacity"] < 12.0, "what a replica does, not what its target says"
    told = await asyncio.to_thread(installation.run, "explain", "who")
    assert "known of a replica" in told.stdout, told.stdout
