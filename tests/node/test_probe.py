from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tangram.node.probe import next_delay, probe

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[int]]]:
    """A server that answers each connection with the given bytes, or by the given function; its port."""
    servers: list[asyncio.Server] = []
    open_connections = 0

    async def serve(answer: bytes | Answer) -> int:
        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            assert isinstance(answer, bytes)
            writer.write(answer)

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal open_connections
            open_connections += 1
            try:
                await (plain if isinstance(answer, bytes) else answer)(reader, writer)
                writer.write_eof()
                await reader.read()
            except (ConnectionError, OSError):
                # Left in the middle.
                pass
            finally:
                writer.close()
                open_connections -= 1

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    yield serve
    for server in servers:
        server.close()
        await server.wait_closed()
    # The probe leaves no connection open.
    async with asyncio.timeout(5.0):
        while open_connections:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def ask(port: int, path: str = "/ready", timeout_s: float = 5.0) -> str | None:
    failure = await probe("127.0.0.1", port, path, timeout_s)
    return failure.text if failure else None


@pytest.mark.parametrize(
    ("answer", "answered"), [(b"HTTP/1.1 503 Busy\r\n\r\n", True), (b"SSH-2.0-OpenSSH_9\r\n", True), (b"", False)]
)
async def test_one_that_says_no_is_told_from_one_that_says_nothing(
    serve: Callable[..., Awaitable[int]], answer: bytes, answered: bool
) -> None:
    failure = await probe("127.0.0.1", await serve(answer), "/ready", 5.0)
    assert failure is not None
    assert failure.answered is answered


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "299", "200"])
async def test_2xx_is_ready(serve: Callable[..., Awaitable[int]], status: str) -> None:
    assert await ask(await serve(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())) is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 503 Loading\r\n\r\n", "status 503"),
        (b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", "status 302"),
        (b"SSH-2.0-OpenSSH_9\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 2\r\n", "the answer is not HTTP"),
        (b"HTTP/1.1 2\xb20 OK\r\n", "the answer is not HTTP"),
        (b"x" * 5000, "the answer is not HTTP"),
        (b"", "connection closed without an answer"),
        (b"HTTP/1.1 20", "connection closed without an answer"),
    ],
)
async def test_anything_else_says_why_not(serve: Callable[..., Awaitable[int]], answer: bytes, why: str) -> None:
    port = await serve(answer)
    assert await ask(port, "/v2/health/ready") == f"GET /v2/health/ready on port {port}: {why}"


async def test_a_port_that_nobody_listens_on_is_refused(serve: Callable[..., Awaitable[int]]) -> None:
    assert await ask(0) == "GET /ready on port 0: connection refused"


async def test_a_server_that_is_silent_is_given_up_and_its_connection_closed(
    serve: Callable[..., Awaitable[int]],
) -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        left.set()

    port = await serve(silent)
    assert await ask(port, timeout_s=0.05) == f"GET /ready on port {port}: no answer within 0.05 s"
    async with asyncio.timeout(5.0):
        await left.wait()


async def test_the_request_is_plain_http_and_the_status_line_may_come_in_pieces(
    serve: Callable[..., Awaitable[int]],
) -> None:
    heads: list[list[str]] = []

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n"))
        for piece in (b"HT", b"TP/1.1 2", b"00 OK\r", b"\n\r\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    port = await serve(slow)
    assert await ask(port, "/a?b=c") is None
    (head,) = heads
    assert head[0] == "GET /a?b=c HTTP/1.1"
    assert {f"Host: 127.0.0.1:{port}", "Connection: close"} <= set(head)


async def test_a_server_may_send_its_body_after_it_was_found_ready(serve: Callable[..., Awaitable[int]]) -> None:
    asked, sent = asyncio.Event(), asyncio.Event()

    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n")
        await asked.wait()
        # More than fits the buffers between: it would fail if the connection were closed under it.
        writer.write(b"x" * 3_000_000)
        await writer.drain()
        sent.set()

    assert await ask(await serve(chatty)) is None
    asked.set()
    async with asyncio.timeout(5.0):
        await sent.wait()


@pytest.mark.parametrize(
    ("age_s", "period_s", "delay"),
    [
        (None, 1.0, 0.03),
        (None, 0.01, 0.01),
        (0.04, 1.0, 0.05),
        (2.0, 1.0, 0.1),
        (20.0, 1.0, 0.25),
        (20.0, 0.2, 0.2),
    ],
)
def test_a_young_instance_is_asked_often(age_s: float | None, period_s: float, delay: float) -> None:
    assert next_delay(age_s, period_s, 17.3, ready=False) == pytest.approx(delay)


@pytest.mark.parametrize(("age_s", "ready"), [(31.0, False), (0.5, True), (None, True)])
def test_an_old_or_ready_instance_is_asked_at_its_period_together_with_others(age_s: float | None, ready: bool) -> None:
    delays = [next_delay(age_s, 2.0, now, ready=ready) for now in (100.0, 100.4, 101.1, 101.999, 102.001)]
    assert delays == pytest.approx([2.0, 1.6, 2.9, 2.001, 1.999])


@given(st.floats(0.05, 3600.0), st.floats(0.0, 1e7))
def test_a_regular_probe_is_never_much_off_its_period(period_s: float, now: float) -> None:
    delay = next_delay(None, period_s, now, ready=True)
    assert 0.49 * period_s <= delay <= 1.51 * period_s
