"""Autobahn's fuzzing client against an echo server, directly and through a worker: the verdicts must be the same.

TANGRAM_WSTEST names its program `wstest` (PyPI: autobahntestsuite 0.8.2, for Python 2.7); without it the test skips.
TANGRAM_WSTEST_CASES names other cases than the quick ones; "*" takes all of its 500.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex

import pytest
from aiohttp import WSMsgType, web

from gateway import wire

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

QUICK = "1.* 2.* 3.* 4.* 5.* 6.1.* 6.2.* 6.3.* 7.* 9.1.1 9.2.1 10.* 12.1.1 13.1.1"


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    socket = web.WebSocketResponse(max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await socket.send_bytes(message.data)
    return socket


@pytest.fixture
async def echoing():
    """Port of a WebSocket server that echoes."""
    server = web.Server(echo)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1]
    listening.close()
    await server.shutdown(1)


async def test_autobahn_sees_no_difference(run_worker, tmp_path, echoing):
    program = os.environ.get("TANGRAM_WSTEST")
    if not program:
        pytest.skip("TANGRAM_WSTEST names no wstest")
    worker = run_worker(
        wire.ModelEntry(name="m", endpoints=(wire.EndpointEntry(id="m-0", host="127.0.0.1", port=echoing),))
    )
    spec = {
        "outdir": str(tmp_path / "reports"),
        "servers": [
            {"agent": "direct", "url": f"ws://127.0.0.1:{echoing}/echo"},
            {"agent": "gateway", "url": f"ws://127.0.0.1:{worker.port}/models/m/echo"},
        ],
        "cases": os.environ.get("TANGRAM_WSTEST_CASES", QUICK).split(),
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    log = tmp_path / "wstest.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *shlex.split(program),
            *("-m", "fuzzingclient", "-s", str(tmp_path / "spec.json")),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=tmp_path,
        )
        assert await process.wait() == 0, log.read_text()[-2000:]
    index = json.loads((tmp_path / "reports/index.json").read_text())
    direct, gateway = (
        {case: (v["behavior"], v["behaviorClose"]) for case, v in index[agent].items()}
        for agent in ("direct", "gateway")
    )
    print(f"\n{len(gateway)} cases, {sum(v[0] == 'OK' for v in gateway.values())} OK")
    assert direct
    assert {case: (v, gateway[case]) for case, v in direct.items() if gateway[case] != v} == {}
