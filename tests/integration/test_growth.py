"""A slice that may grow does so at once under a step of load, while its siblings still start, and gives back after."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

#: Works for as many milliseconds of CPU as the request says; takes its time to start.
BUSY = """
import os, time
import numpy as np
from tangram.node.runtimes.embedded import Model, Tensor

time.sleep(4)

class Busy(Model):
    inputs = [Tensor("delay_ms", "INT32", (1,))]
    outputs = [Tensor("pid", "INT32", (1,))]

    def predict(self, inputs):
        until = time.thread_time() + int(inputs["delay_ms"][0]) / 1000
        while time.thread_time() < until:
            pass
        return {"pid": np.array([os.getpid()], np.int32)}
"""


async def test_a_slice_grows_under_a_step_and_shrinks_when_the_load_is_carried(
    installation: Any, make_load: Any
) -> None:
    scaling = "minReplicas: 1, maxReplicas: 3, behavior: {scaleDown: {stabilizationWindowSeconds: 3600}}"
    document = installation.document(scaling=scaling).replace("compute: 20", "compute: 20, computeLimit: 90")
    installation.write(document + "  traffic: {concurrencyPerReplica: 1}\n")
    (installation.folder / "who.py").write_text(BUSY)
    installation.up()
    (first,) = installation.wait_ready(1)
    assert (first["compute"], first["loanedCompute"]) == (20, 0)

    def loans() -> list[int]:
        return [r["loanedCompute"] for r in installation.replicas()]

    async def until(look: Any, what: str, timeout_s: float = 60.0) -> None:
        await asyncio.to_thread(installation.wait_for, look, timeout_s, what, installation.told)

    async with make_load(clients=1, delay_ms=20, pause_s=0.2).running():
        await until(lambda: (installation.get("/models/who") or {}).get("capacity"), "the capacity is known")
    async with make_load(clients=6, delay_ms=20, pause_s=0.0).running() as load:
        await until(lambda: any(loans()), "the slice has grown")
        held = {r["name"]: r["compute"] + r["loanedCompute"] for r in installation.replicas()}
        assert all(20 <= percent <= 90 for percent in held.values())
        await until(lambda: len(installation.replicas()) >= 2, "siblings are ready")
        await load.flow()
    assert load.failures == []
    async with make_load(clients=1, delay_ms=20, pause_s=0.3).running():
        await until(lambda: len(loans()) >= 2 and not any(loans()), "what was lent is given back", 90.0)
    done = [a for d in installation.items("/decisions?model=who") for a in d["actions"] if a.startswith("resize ")]
    assert any("on loan until more replicas are ready" in a for a in done), done
    assert any("20 percent, as it is guaranteed" in a for a in done), done
