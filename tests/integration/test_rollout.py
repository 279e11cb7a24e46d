"""Rollouts under load, as an operator does them: canary, replacement, rollback and undo, and no request is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

#: Answers like MODEL, except that `delay_ms` of more than 0 is more than it can take.
BROKEN = """
import numpy as np
from tangram.node.runtimes.embedded import Model, Tensor

class Broken(Model):
    inputs = [Tensor("delay_ms", "INT32", (1,))]
    outputs = [Tensor("pid", "INT32", (1,))]

    def predict(self, inputs):
        raise RuntimeError("out of order")
"""


def write(
    installation: Any, *, runtime: str = "", rollout: str = "", scaling: str = "replicas: 2, maxReplicas: 4"
) -> None:
    document = installation.document(runtime=runtime, scaling=scaling)
    installation.write(document + (f"  rollout: {rollout}\n" if rollout else ""))
    (installation.folder / "broken.py").write_text(BROKEN)


def rollout(installation: Any) -> dict[str, Any]:
    return installation.get("/models/who/rollout") or {}


def apply(installation: Any) -> None:
    ran = installation.run("apply", "-f", str(installation.file))
    assert ran.returncode == 0, ran.stderr


async def reaches(installation: Any, stage: str, timeout_s: float = 40.0) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = rollout(installation)
        return found if found.get("stage") == stage else None

    return await asyncio.to_thread(installation.wait_for, look, timeout_s, f"stage {stage}", installation.told)


async def test_a_canary_comes_in_and_goes_on_to_the_rest(installation: Any, make_load: Any) -> None:
    write(installation)
    installation.up()
    before = {r["pid"] for r in installation.wait_ready(2)}
    write(installation, runtime="env: [{name: V, value: '2'}]", rollout="{canary: [{percent: 25, seconds: 3}]}")
    async with make_load(clients=6).running() as load:
        await load.flow()
        apply(installation)
        await reaches(installation, "Canary")
        canary = await asyncio.to_thread(
            installation.wait_for,
            lambda: [r for r in installation.replicas() if r["pid"] not in before] or None,
            20,
            "canary",
        )
        assert len(canary) == 1
        begin = len(load.outcomes)
        await load.flow(300)
        during = [o.pid for o in load.outcomes[begin : begin + 300]]
        assert len(installation.replicas()) == 3 or rollout(installation)["stage"] != "Canary"
        done = await reaches(installation, "Complete")
        await load.flow()
    assert load.failures == []
    assert 0.1 < during.count(canary[0]["pid"]) / len(during) < 0.6
    assert not {r["pid"] for r in installation.wait_ready(2)} & before
    assert [r["current"] for r in done["revisions"]] == [True, False]
    ran = installation.run("rollout", "status", "who", "--wait")
    assert ran.returncode == 0 and "Complete" in ran.stdout

    # And back again.
    ran = installation.run("rollout", "undo", "who")
    assert ran.returncode == 0, ran.stderr
    back = await reaches(installation, "Complete")
    assert back["revision"] == done["former"]


async def test_a_revision_that_never_starts_is_taken_back(installation: Any, make_load: Any) -> None:
    write(installation)
    installation.up()
    before = {r["name"] for r in installation.wait_ready(2)}
    (installation.folder / "never.py").write_text("raise SystemExit(3)\n")
    async with make_load(clients=4).running() as load:
        await load.flow()
        good = installation.get("/models/who")["revision"]
        document = installation.document(runtime="progressDeadlineSeconds: 3", scaling="replicas: 2, maxReplicas: 4")
        installation.write(document.replace("model: who.py", "model: never.py"))
        apply(installation)
        ended = await reaches(installation, "RolledBack")
        await load.flow()
    assert load.failures == []
    assert "ready after 3 s" in ended["message"]
    assert {r["name"] for r in installation.wait_ready(2)} == before
    assert installation.get("/models/who")["revision"] == good
    events = installation.items("/events?model=who")
    assert any(e["reason"] == "Rollout" and "rolled back" in e["message"] for e in events)
    ran = installation.run("rollout", "undo", "who")
    assert ran.returncode == 2 and "no earlier revision" in ran.stderr


async def test_a_revision_that_fails_its_requests_is_taken_back(installation: Any, make_load: Any) -> None:
    write(installation)
    installation.up()
    installation.wait_ready(2)
    terms = "{canary: [{percent: 10, seconds: 60}], maxErrorPercent: 20, minRequests: 5}"
    async with make_load(clients=4).running() as load:
        await load.flow()
        write(installation, rollout=terms)
        installation.file.write_text(installation.file.read_text().replace("model: who.py", "model: broken.py"))
        apply(installation)
        ended = await reaches(installation, "RolledBack")
        await asyncio.to_thread(installation.wait_ready, 2)
        begin = len(load.outcomes)
        await load.flow(50)
    assert "requests to revision" in ended["message"]
    # What the canary answered with errors was its share; nothing was lost, and nothing fails after it.
    assert all(o.status == 500 for o in load.failures), load.failures
    assert 5 <= len(load.failures) <= 60
    assert all(o.status == 200 for o in load.outcomes[begin:])


async def test_on_a_full_fleet_nothing_is_lost_either(installation: Any, make_load: Any) -> None:
    fleet = """
apiVersion: tangram.dev/v1alpha1
kind: Fleet
metadata: {name: test}
spec:
  nodes:
  - name: node-a
    devices:
    - {name: gpu-0, memory: 220Mi, cores: "1"}
"""
    scaling = "replicas: 2, maxReplicas: 4"
    installation.write(installation.document(scaling=scaling), fleet=fleet)
    installation.up()
    before = {r["pid"] for r in installation.wait_ready(2)}
    changed = installation.document(runtime="env: [{name: V, value: '2'}]", scaling=scaling)
    installation.write(changed + "  rollout: {canary: [{percent: 30, seconds: 1}]}\n", fleet=fleet)
    async with make_load(clients=4).running() as load:
        await load.flow()
        apply(installation)
        await reaches(installation, "Complete")
        await load.flow()
    assert load.failures == []
    assert not {r["pid"] for r in installation.wait_ready(2)} & before
