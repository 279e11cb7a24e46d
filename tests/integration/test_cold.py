"""Models at zero under a crowd, and a model that never becomes ready."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]

#: Listens on nothing, for ever.
NEVER = "import time\nwhile True:\n    time.sleep(60)\n"
BODY = json.dumps({"inputs": [{"name": "delay_ms", "datatype": "INT32", "shape": [1], "data": [0]}]}).encode()


async def ask(port: int, model: str, **fields: str) -> tuple[int, dict[str, str]]:
    """One request over a connection of its own: status and header fields."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = "".join(f"{n.replace('_', '-')}: {v}\r\n" for n, v in fields.items())
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: gw\r\nContent-Length: {len(BODY)}\r\n{lines}\r\n"
        writer.write(head.encode() + BODY)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        told = {n.lower(): v for n, _, v in (line.partition(": ") for line in answer[1:] if line)}
        return int(answer[0].split(" ")[1]), told
    finally:
        writer.transport.abort()


async def test_a_crowd_at_a_model_at_zero_gets_one_replica_started(installation: Any) -> None:
    installation.write(installation.document(scaling="minReplicas: 0, maxReplicas: 4, targetQPS: 2000"))
    installation.up()
    await asyncio.to_thread(installation.wait_ready, 0)
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(ask(installation.gateway_port, "who") for _ in range(1000)))
    assert {status for status, _ in answers} == {200}
    # Once it is ready, what it was seen to carry may well call for another.
    ready_at = next(e["at"] for e in reversed(installation.items("/events?model=who")) if e["reason"] == "Ready")
    before = [d for d in installation.items("/decisions?model=who") if d["at"] < ready_at]
    started = [a for d in before for a in d["actions"] if a.startswith("start")]
    assert len(started) == 1, started


async def test_a_model_that_never_becomes_ready_refuses_in_time_and_in_bounded_memory(installation: Any) -> None:
    document = installation.document(
        runtime="progressDeadlineSeconds: 60", scaling="minReplicas: 0, maxReplicas: 2, targetQPS: 50"
    )
    command = "kind: command, command: [python3, never.py]"
    document = document.replace("model: who.py", command) + "  traffic: {queue: {maxSeconds: 3, maxRequests: 500}}\n"
    installation.write(document)
    (Path(installation.folder) / "never.py").write_text(NEVER)
    installation.up()
    await asyncio.to_thread(installation.wait_ready, 0)
    worker = psutil.Process(installation.pid("worker-0"))

    async def crowd() -> None:
        async def timed() -> float:
            began = time.monotonic()
            status, told = await ask(installation.gateway_port, "who")
            assert status == 503, status
            assert 1 <= int(told["retry-after"]) <= 300
            return time.monotonic() - began

        async with asyncio.timeout(30):
            took = await asyncio.gather(*(timed() for _ in range(800)))
        assert max(took) < 10

    await crowd()
    settled = worker.memory_info().rss
    for _ in range(3):
        await crowd()
    assert worker.memory_info().rss - settled < 8 * 2**20
    # A client that waits for less is told in its own time.
    began = time.monotonic()
    status, _ = await ask(installation.gateway_port, "who", X_Request_Timeout="500ms")
    assert status == 504 and time.monotonic() - began < 2
