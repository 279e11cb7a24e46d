"""Clients that are slow, idle, half gone or gone while nobody reads what they send; through real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateway.timeouts import Pace, Timeouts

INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: gw\r\nContent-Length: %d\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def hasty(kit, fast):
    """A gateway with little patience."""
    made = kit.Gateway(
        timeouts=Timeouts(head_s=0.3, idle_s=0.5, body_grace_s=0.4, body_rate=1000.0, stall_s=0.5, half_closed_s=0.2),
        fast=fast,
    )
    await made.front.start()
    yield made
    await made.close()


async def hang(seen, writer, reader):
    await reader.read()


def test_a_body_earns_time_with_its_bytes():
    pace = Pace(Timeouts(body_grace_s=10.0, body_rate=100.0))
    assert pace.left() == 10.0
    pace.came(500, 4.0)
    assert pace.left() == 11.0
    pace.came(1, 20.0)
    assert pace.left() == 0.0


async def test_a_head_that_comes_a_byte_at_a_time_is_408(hasty):
    client = await hasty.client()

    async def drip() -> None:
        for byte in b"GET /v2 HTTP/1.1\r\nHost: " + b"a" * 1000:
            client.send(bytes([byte]))
            await asyncio.sleep(0.02)

    task = asyncio.create_task(drip())
    answer = await client.response("GET")
    task.cancel()
    assert (answer.status, answer["Connection"]) == (408, "close")
    assert await client.ended()
    assert hasty.dispatcher.meter.unrouted == {408: 1}


async def test_the_second_head_of_a_connection_must_be_quick_too(hasty):
    client = await hasty.client()
    assert (await client.ask(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
    client.send(b"GET /v2 HTTP/1.1\r\nHo")
    assert (await client.response("GET")).status == 408


async def test_a_head_in_time_is_not_cut_short(hasty):
    client = await hasty.client()
    for part in (b"GET /v2 HT", b"TP/1.1\r\nHost", b": a\r\n\r\n"):
        client.send(part)
        await asyncio.sleep(0.08)
    assert (await client.response("GET")).status == 200
    await asyncio.sleep(0.35)
    assert (await client.ask(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200


async def test_connections_without_a_request_end(hasty):
    fresh, used = await hasty.client(), await hasty.client()
    assert (await used.ask(b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
    assert await fresh.ended()
    assert await used.ended()


@pytest.mark.parametrize("target", [b"/v2/models/m/infer", b"/v1/completions"])
async def test_a_body_that_comes_a_byte_at_a_time_is_408(hasty, replica, kit, target):
    one = await replica()
    hasty.model("m", one)
    client = await hasty.client()
    client.send(b"POST %s HTTP/1.1\r\nHost: gw\r\nContent-Length: 10000\r\n\r\n" % target)

    async def drip() -> None:
        while True:
            client.send(b" ")
            await asyncio.sleep(0.05)

    task = asyncio.create_task(drip())
    answer = await client.response()
    task.cancel()
    assert (answer.status, answer["Connection"]) == (408, "close")
    await kit.until(lambda: hasty.quiet and one.open == 0, "the replica is free again")


async def test_a_replica_that_reads_slowly_is_not_the_clients_fault(hasty, replica, kit):
    size = 8_000_000

    async def slow(seen, writer, reader):
        await asyncio.sleep(1.0)
        left = size
        while left:
            left -= len(await reader.read(2**20))
        writer.write(OK)

    hasty.model("m", await replica(slow, read_body=False))
    client = await hasty.client()
    client.send(INFER % size + b"x" * size)
    assert (await client.response()).status == 200


async def test_a_reader_that_reads_nothing_is_let_go(hasty, replica, kit):
    async def much(seen, writer, reader):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
        for _ in range(640):
            writer.write(b"x" * 100_000)
            await writer.drain()

    one = await replica(much)
    hasty.model("m", one)
    client = await hasty.client()
    client.writer.transport.pause_reading()
    client.send(INFER % 0)
    await kit.until(lambda: one.seen)
    await kit.until(lambda: hasty.quiet and one.open == 0 and hasty.front.clients == 0)
    assert hasty.meter().cancelled == 1


# --- ends of connections ---


async def test_a_client_that_ends_its_side_still_gets_a_quick_answer(gateway, replica):
    gateway.model("m", await replica())
    connect = b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"
    for request in (INFER % 2 + b"{}", b"GET /v2 HTTP/1.1\r\nHost: a\r\n\r\n", b"nonsense\r\n\r\n", connect):
        client = await gateway.client()
        client.send(request)
        client.writer.write_eof()
        assert (await client.response()).status in (200, 400, 405)
        assert await client.ended()


async def test_a_client_that_ends_its_side_is_not_waited_for(hasty, replica, kit):
    one = await replica(hang)
    hasty.model("m", one)
    client = await hasty.client()
    client.send(INFER % 2 + b"{}")
    await kit.until(lambda: one.seen)
    client.writer.write_eof()
    await kit.until(lambda: one.open == 0 and hasty.quiet)
    assert hasty.meter().cancelled == 1


@pytest.mark.parametrize("stage", ["queued", "uploading"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_leaving_is_noticed_while_nothing_is_read_of_a_large_body(gateway, replica, kit, stage, how):
    ended = asyncio.Event()

    async def reads_nothing(seen, writer, reader):
        await ended.wait()

    one = await replica(reads_nothing, read_body=False)
    gateway.model("m", *([one] if stage == "uploading" else []))
    loop = asyncio.get_running_loop()
    raw = socket.create_connection(("127.0.0.1", gateway.front.port))
    raw.setblocking(False)
    # Enough that the gateway stops reading; and where the end is to come in order, not so much that it cannot come.
    await loop.sock_sendall(raw, INFER % 500_000_000)
    total = idle = 0
    while idle < 50:
        try:
            total += raw.send(b"x" * 65536)
            idle = 0
        except BlockingIOError:
            idle += 1
        if how == "close" and any(c.deaf for c in gateway.front._server.connections):
            break
        await asyncio.sleep(0.005)
    assert total > 100_000
    await kit.until(lambda: gateway.meter().queue.value + gateway.meter().flight.value == 1)
    if how == "reset":
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left = loop.time()
    raw.close()
    await kit.until(lambda: gateway.quiet and not any(busy for busy, _ in gateway.pools.counts().values()))
    assert loop.time() - left < 1.0
    assert gateway.meter().cancelled == 1
    ended.set()
