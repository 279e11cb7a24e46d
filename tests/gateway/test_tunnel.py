"""WebSockets through the gateway, with aiohttp's client and server at the ends, and with raw bytes."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from aiohttp import web

ASK = (
    b"GET /models/m/ws HTTP/1.1\r\nHost: gw\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@pytest.fixture
async def server(gateway):
    """A WebSocket server that echoes, as model m; gives the list of requests it took."""
    seen: list[web.BaseRequest] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(request)
        if "no" in request.path:
            return web.Response(status=403, text="not here")
        socket = web.WebSocketResponse(protocols=("chat",), max_msg_size=2**24)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001, message=b"as you wish")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data)
            else:
                await socket.send_bytes(message.data)
        return socket

    served = web.Server(handle)
    listening = await asyncio.get_running_loop().create_server(served, "127.0.0.1", 0)
    endpoint = type("At", (), {"port": listening.sockets[0].getsockname()[1]})
    gateway.model("m", gateway.endpoint(endpoint))
    yield seen
    listening.close()
    await served.shutdown(1)


async def test_messages_go_both_ways_and_closing_reaches_the_other_side(gateway, server, kit):
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"http://127.0.0.1:{gateway.front.port}/models/m/echo?x=1", protocols=("chat",), max_msg_size=2**24
        ) as socket,
    ):
        assert socket.protocol == "chat"
        for size in (0, 1, 125, 126, 65_535, 65_536, 5_000_000):
            await socket.send_bytes(bytes(size))
            assert (await socket.receive(timeout=10)).data == bytes(size)
        await socket.send_str("grüß dich")
        assert (await socket.receive(timeout=10)).data == "grüß dich"
        await socket.ping(b"x")
        assert gateway.meter().flight.value == 1
        await socket.send_str("bye")
        closing = await socket.receive(timeout=10)
        assert (closing.data, closing.extra) == (4001, "as you wish")
    await kit.until(lambda: gateway.quiet)
    assert gateway.meter().codes == {101: 1}
    assert server[0].path_qs == "/echo?x=1"
    assert server[0].headers["X-Request-Id"]


async def test_a_client_that_closes_ends_the_tunnel(gateway, server, kit):
    async with aiohttp.ClientSession() as session:
        socket = await session.ws_connect(f"http://127.0.0.1:{gateway.front.port}/models/m/echo")
        await socket.send_str("x")
        await socket.receive(timeout=10)
        assert await socket.close()
    await kit.until(lambda: gateway.quiet and gateway.pools.counts()["m-0"] == (0, 0))
    assert gateway.meter().completions == 1


async def test_a_refused_switch_is_an_ordinary_answer_and_the_connection_goes_on(gateway, server):
    client = await gateway.client()
    refused = await client.ask(ASK.replace(b"/ws", b"/no"))
    assert (refused.status, refused.body) == (403, b"not here")
    assert (await client.ask(b"GET /models/m/no HTTP/1.1\r\nHost: a\r\n\r\n")).status == 403


@pytest.mark.parametrize("early", [True, False])
async def test_bytes_that_follow_a_head_at_once_belong_to_the_tunnel(gateway, replica, early):
    async def answer(seen, writer, reader):
        writer.write(SWITCHED + b"first")
        data = await reader.readexactly(6)
        writer.write(data)
        await writer.drain()
        return "close"

    one = await replica(answer)
    gateway.model("m", one)
    client = await gateway.client()
    client.send(ASK + (b"second" if early else b""))
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    assert head.count(b"Upgrade") == 2
    assert await client.reader.readexactly(5) == b"first"
    if not early:
        client.send(b"second")
    assert await client.reader.read() == b"second"
    seen = one.seen[0]
    assert (seen["Connection"], seen["Upgrade"]) == ("Upgrade", "websocket")
    assert seen["Sec-WebSocket-Key"] == "dGhlIHNhbXBsZSBub25jZQ=="


async def test_a_slow_end_stops_the_other(gateway, replica, kit):
    size = 64 * 1024 * 1024
    block = bytes(65536)
    sent = {"up": 0, "down": 0}
    goes_on = asyncio.Event()

    async def pump(writer, name):
        while sent[name] < size:
            writer.write(block)
            await writer.drain()
            sent[name] += len(block)

    async def swallow(reader):
        left = size
        while left:
            part = await reader.read(2**20)
            assert part
            left -= len(part)

    async def answer(seen, writer, reader):
        writer.write(SWITCHED)
        down = asyncio.create_task(pump(writer, "down"))
        await goes_on.wait()
        await swallow(reader)
        await down

    gateway.model("m", await replica(answer))
    client = await gateway.client()
    client.send(ASK)
    await client.reader.readuntil(b"\r\n\r\n")
    up = asyncio.create_task(pump(client.writer, "up"))
    before: dict[str, int] = {}
    while sent != before or not all(sent.values()):
        before = dict(sent)
        await asyncio.sleep(0.1)
    assert max(sent.values()) < 24 * 1024 * 1024
    goes_on.set()
    await swallow(client.reader)
    await up
    client.leave()
    await kit.until(lambda: gateway.quiet)


@pytest.mark.parametrize("who", ["client", "replica"])
async def test_a_reset_of_one_end_ends_the_other(gateway, replica, kit, who):
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        writer.write(SWITCHED)
        if who == "replica":
            await goes_on.wait()
            return "reset"
        await reader.read()
        return "close"

    one = await replica(answer)
    gateway.model("m", one)
    client = await gateway.client()
    client.send(ASK)
    await client.reader.readuntil(b"\r\n\r\n")
    if who == "client":
        kit.reset(client.writer)
    goes_on.set()
    await kit.until(lambda: gateway.quiet and one.open == 0 and gateway.front.clients == 0)
    if who == "replica":
        assert await client.ended()


async def test_a_switch_that_nobody_asked_for_is_502(gateway, replica, kit):
    gateway.model("m", await replica(kit.fixed(SWITCHED, "close")), retry_attempts=0)
    for request in (
        ASK.replace(b"keep-alive, Upgrade", b"keep-alive"),
        ASK.replace(b"WebSocket", b"h2c"),
        ASK.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"),
    ):
        assert (await gateway.ask(request)).status == 502
