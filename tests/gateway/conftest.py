"""Real sockets for the gateway's tests: a replica whose every byte a test decides, a raw client, and a gateway between.

Everything runs in the test's own event loop (uvloop, as in a worker), so a test can look at the gauges directly.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h11
import pytest
import uvloop

from gateway import wire
from gateway.app import Front
from gateway.dispatch import Dispatcher
from gateway.engine import Engine
from gateway.limits import Limits
from gateway.listener import listening_socket
from gateway.meter import Meter
from gateway.pools import Pools
from gateway.proxy import Proxy
from gateway.timeouts import Timeouts

BOUND_S = 10.0


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Any]:
    return {"uvloop": uvloop.new_event_loop}


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Wait for a condition; fails after BOUND_S."""
    end = asyncio.get_running_loop().time() + BOUND_S
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"never came true: {what or condition}"
        await asyncio.sleep(0.005)


@dataclass
class Seen:
    """A request as a replica saw it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    connection: int = 0

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.headers if n.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]


@dataclass
class Replica:
    """An HTTP/1.1 server; `answer(seen, writer, reader)` writes the response's bytes.

    With `read_body` False the answer reads the body itself. An answer that returns "close" ends the connection, one
    that returns "reset" resets it.
    """

    answer: Callable[..., Awaitable[Any]]
    read_body: bool = True
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    ended: int = 0
    """Connections that the other side ended, or that were lost."""
    port: int = 0
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=2**18)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()

        def ended() -> bool:
            # One that was taken just before may only now be served.
            for writer in list(self._writers):
                writer.transport.abort()
            return not self.open

        await until(ended, "replica's connections end")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ")
                fields = [tuple(line.split(": ", 1)) for line in lines[1:] if line]
                seen = Seen(method, target, fields, connection=number)  # type: ignore[arg-type]
                self.seen.append(seen)
                if self.read_body:
                    seen.body = await read_body(seen, reader)
                word = await self.answer(seen, writer, reader)
                await writer.drain()
                if word == "close":
                    break
                if word == "reset":
                    reset(writer)
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended += 1
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()


async def read_body(seen: Seen, reader: asyncio.StreamReader) -> bytes:
    if "chunked" in "".join(seen.all("transfer-encoding")):
        body = b""
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            body += (await reader.readexactly(size + 2))[:-2]
            if not size:
                return body
    length = seen.all("content-length")
    return await reader.readexactly(int(length[0])) if length else b""


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a reset."""
    raw = writer.transport.get_extra_info("socket")
    if writer.transport.is_closing() or raw.fileno() < 0:
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def echo(seen: Seen, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> None:
    """Answers with the body it got."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(seen.body))
    writer.write(seen.body)


def fixed(response: bytes, word: str | None = None) -> Callable[..., Awaitable[Any]]:
    """Answers with these bytes."""

    async def answer(seen: Seen, writer: asyncio.StreamWriter, reader: asyncio.StreamReader) -> str | None:
        writer.write(response)
        return word

    return answer


@dataclass
class Response:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    trailers: list[tuple[str, str]]
    informational: list[int]
    reason: str = ""

    def all(self, name: str) -> list[str]:
        return [v for n, v in self.headers if n.lower() == name.lower()]

    def __getitem__(self, name: str) -> str:
        values = self.all(name)
        assert len(values) == 1, f"{name}: {values}"
        return values[0]


class Truncated(Exception):
    """The connection ended within an answer."""


class Client:
    """One raw connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._http = h11.Connection(h11.CLIENT)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def event(self) -> Any:
        """The next event of the answer."""
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                raise Truncated(str(error)) from error
            if event is not h11.NEED_DATA:
                return event
            try:
                async with asyncio.timeout(BOUND_S):
                    self._http.receive_data(await self.reader.read(65536))
            except ConnectionError as error:
                raise Truncated(str(error)) from error

    def expect(self, method: str = "POST") -> None:
        """Tell the parser what was asked, since an answer to HEAD has no body."""
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        if self._http.our_state is h11.IDLE:
            self._http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
            self._http.send(h11.EndOfMessage())

    async def response(self, method: str = "POST") -> Response:
        """A whole answer; Truncated where it is not whole."""
        self.expect(method)
        informational = []
        while isinstance(event := await self.event(), h11.InformationalResponse):
            informational.append(event.status_code)
        if not isinstance(event, h11.Response):
            raise Truncated(repr(event))
        body = b""
        while isinstance(part := await self.event(), h11.Data):
            body += part.data
        if not isinstance(part, h11.EndOfMessage):
            raise Truncated(repr(part))
        return Response(
            event.status_code,
            [(n.decode(), v.decode("latin-1")) for n, v in event.headers.raw_items()],
            body,
            [(n.decode(), v.decode("latin-1")) for n, v in part.headers.raw_items()],
            informational,
            event.reason.decode("latin-1"),
        )

    async def ask(self, data: bytes) -> Response:
        """Send a request and read its answer."""
        self.send(data)
        return await self.response(data.split(b" ", 1)[0].decode())

    async def ended(self) -> bool:
        """Whether the gateway ends the connection."""
        try:
            async with asyncio.timeout(BOUND_S):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def leave(self) -> None:
        """Go without a word."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(1):
                await self.writer.wait_closed()


class Gateway:
    """A gateway in this process, with the fast path or without."""

    def __init__(
        self, limits: Limits | None = None, index: int = 0, timeouts: Timeouts | None = None, *, fast: bool = True
    ) -> None:
        loop = asyncio.get_running_loop()
        rng = random.Random(0)
        self.wakes: list[str] = []
        self.reports = 0
        self.dispatcher = Dispatcher(limits or Limits(), Meter(index, "e", loop.time()), rng)
        self.pools = Pools()
        self.engine = Engine(self.dispatcher, self.pools, wake=self.wakes.append, report=self._report)
        self.proxy = Proxy(self.engine, rng, timeouts)
        self.front = Front(self.proxy, listening_socket("127.0.0.1", 0), fast=fast)
        self._number = 0
        self._clients: list[Client] = []

    def _report(self) -> None:
        self.reports += 1

    def model(self, name: str, *endpoints: Replica | wire.EndpointEntry, **fields: Any) -> None:
        """Declare a model as the controller would; a Replica stands for an endpoint without a limit."""
        entries = tuple(
            e if isinstance(e, wire.EndpointEntry) else self.endpoint(e, id=f"{name}-{n}", slot=n)
            for n, e in enumerate(endpoints)
        )
        self.apply(wire.Update(term=1, number=0, model=wire.ModelEntry(name=name, endpoints=entries, **fields)))

    @staticmethod
    def endpoint(replica: Replica, id: str = "m-0", **fields: Any) -> wire.EndpointEntry:
        return wire.EndpointEntry(id=id, host="127.0.0.1", port=replica.port, **fields)

    def apply(self, message: wire.Snapshot | wire.Update | wire.Removal) -> None:
        self._number += 1
        effects = self.dispatcher.apply(
            message.model_copy(update={"number": self._number}), asyncio.get_running_loop().time()
        )
        assert effects is not None
        self.engine.carry_out(effects)
        self.pools.retain(self.dispatcher.leaving())

    async def client(self) -> Client:
        made = Client(*await asyncio.open_connection("127.0.0.1", self.front.port, limit=2**18))
        self._clients.append(made)
        return made

    async def ask(self, data: bytes) -> Response:
        """One request over a connection of its own."""
        return await (await self.client()).ask(data)

    def meter(self, name: str = "m") -> Any:
        return self.dispatcher.meter.models[name]

    @property
    def quiet(self) -> bool:
        """Nothing queued or in flight anywhere."""
        return all(
            m.idle and not any(e.flight.value for e in m.endpoints.values())
            for m in self.dispatcher.meter.models.values()
        ) and not any(e.in_flight for e in self.dispatcher.endpoints().values())

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        self.front.hasten()
        await self.front.drain(1)
        self.engine.close()
        self.pools.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is tested through a gateway is tested with the fast path and without."""
    if "fast" in metafunc.fixturenames:
        metafunc.parametrize("fast", [True, False], ids=["fast", "full"])


@pytest.fixture
async def gateway(fast: bool) -> AsyncIterator[Gateway]:
    made = Gateway(fast=fast)
    await made.front.start()
    yield made
    await made.close()


@pytest.fixture
async def replica() -> AsyncIterator[Callable[..., Awaitable[Replica]]]:
    """Starts a replica: `await replica(answer, read_body=True)`."""
    made: list[Replica] = []

    async def start(answer: Callable[..., Awaitable[Any]] = echo, **fields: Any) -> Replica:
        one = Replica(answer, **fields)
        await one.start()
        made.append(one)
        return one

    yield start
    for one in made:
        await one.stop()


@dataclass
class Process:
    """A program of ours, or a peer, in a process of its own; its log is read for the ports it took."""

    popen: subprocess.Popen[bytes]
    log: Path

    def find(self, pattern: str) -> re.Match[str]:
        """Wait for a line of its log."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert self.popen.poll() is None, self.log.read_text()
            time.sleep(0.01)
        raise AssertionError(f"never in its log: {pattern}\n{self.log.read_text()}")


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts a process: `spawn(argv, **Popen options)`."""
    made: list[Process] = []

    def start(argv: list[str], **options: Any) -> Process:
        log = tmp_path / f"process-{len(made)}.log"
        with log.open("ab") as out:
            made.append(Process(subprocess.Popen(argv, stdout=out, stderr=out, **options), log))
        return made[-1]

    yield start
    for process in made:
        process.popen.kill()
    for process in made:
        process.popen.wait(10)


@pytest.fixture
def run_worker(spawn: Callable[..., Process], tmp_path: Path) -> Callable[..., Any]:
    """Starts a gateway worker that serves these models: `run_worker(*entries)`; it has `port`, `admin_port`, `pid`."""

    def start(*models: wire.ModelEntry) -> Any:
        table = tmp_path / "table.json"
        table.write_text(wire.Snapshot(term=1, number=1, models=models).model_dump_json())
        process = spawn(
            [
                *(sys.executable, "-m", "gateway.worker", "--listen", "127.0.0.1:0", "--index", "0"),
                *(
                    "--controller",
                    str(tmp_path / "wire.sock"),
                    "--limits",
                    str(tmp_path / "shm"),
                    "--cache",
                    str(table),
                ),
            ]
        )
        ports = process.find(r"listens on .*?:(\d+), admin on .*?:(\d+)")
        return SimpleNamespace(port=int(ports[1]), admin_port=int(ports[2]), pid=process.popen.pid, process=process)

    return start


@pytest.fixture
def kit() -> SimpleNamespace:
    """What tests need besides the fixtures (test modules cannot import this file)."""
    return SimpleNamespace(
        until=until,
        echo=echo,
        fixed=fixed,
        read_body=read_body,
        reset=reset,
        Truncated=Truncated,
        Gateway=Gateway,
        Client=Client,
        Replica=Replica,
    )
