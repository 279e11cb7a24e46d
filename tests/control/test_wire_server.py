"""The controller's end of the wire, through a real Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway import wire
from tangram.control.wire_server import WireServer

TERM = 7


class Peer:
    """A gateway worker as the controller sees it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, index: int, epoch: str) -> None:
        self._socket, self.index, self.epoch = socket, index, epoch

    async def hello(self) -> None:
        await self._send(
            wire.Hello(worker=self.index, epoch=self.epoch, pid=10 + self.index, port=8080, admin_port=9000)
        )

    async def report(self, applied: wire.Version, in_flight: int = 0) -> None:
        endpoint = wire.EndpointCounters(id="digits-1", in_flight=in_flight)
        model = wire.ModelCounters(name="digits", endpoints=(endpoint,))
        await self._send(
            wire.Report(worker=self.index, epoch=self.epoch, uptime_s=1.0, applied=applied, models=(model,))
        )

    async def wake(self, model: str) -> None:
        await self._send(wire.Wake(worker=self.index, model=model))

    async def say(self, text: str) -> None:
        await self._socket.send_str(text)

    async def _send(self, message: Any) -> None:
        await self.say(message.model_dump_json())

    async def hear(self) -> Any:
        async with asyncio.timeout(5):
            return wire.parse_down(await self._socket.receive_str())

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(0.05):
                await self._socket.receive()
        except TimeoutError:
            return True
        return False

    async def ended(self) -> bool:
        async with asyncio.timeout(5):
            kind = (await self._socket.receive()).type
        return kind in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)

    async def close(self) -> None:
        await self._socket.close()


class Wired:
    """A server, what it was told, and as many workers as the test connects."""

    def __init__(self, stack: AsyncExitStack, path: Path, workers: int) -> None:
        self._stack, self.path = stack, path
        self.reports: list[wire.Report] = []
        self.wakes: list[str] = []
        self.came: list[tuple[int, bool]] = []
        self.server = WireServer(
            TERM, workers, self.reports.append, self.wakes.append, lambda index, same: self.came.append((index, same))
        )

    async def connect(self, index: int = 0, epoch: str = "e0", *, hello: bool = True) -> Peer:
        session = await self._stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self.path)))
        )
        peer = Peer(await session.ws_connect("http://controller/wire"), index, epoch)
        if hello:
            known = len(self.came)
            await peer.hello()
            await self.until(lambda: len(self.came) > known)
        return peer

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def wired(tmp_path: Path) -> AsyncIterator[Wired]:
    async with AsyncExitStack() as stack:
        wired = Wired(stack, tmp_path / "wire.sock", workers=1)
        await wired.server.start(wired.path)
        stack.push_async_callback(wired.server.close)
        yield wired


def entry(name: str = "digits", *, draining: bool = False, **fields: Any) -> wire.ModelEntry:
    endpoint = wire.EndpointEntry(id=f"{name}-1", host="127.0.0.1", port=20000, draining=draining)
    return wire.ModelEntry(name=name, endpoints=(endpoint,), **fields)


def table(*entries: wire.ModelEntry) -> dict[str, wire.ModelEntry]:
    return {e.name: e for e in entries}


async def test_the_socket_is_this_users_alone(wired: Wired) -> None:
    assert wired.path.stat().st_mode & 0o777 == 0o600


async def test_no_snapshot_before_the_first_table(wired: Wired) -> None:
    early = await wired.connect()
    assert await early.hears_nothing()
    wired.server.publish(table(entry()))
    assert await early.hear() == wire.Snapshot(term=TERM, number=0, models=(entry(),))


async def test_then_only_what_changed(wired: Wired) -> None:
    wired.server.publish(table(entry("a"), entry("b")))
    peer = await wired.connect()
    assert len((await peer.hear()).models) == 2
    wired.server.publish(table(entry("a"), entry("b")))
    wired.server.publish(table(entry("a", expected_ready_s=3.0), entry("b")))
    wired.server.publish(table(entry("a", timeout_s=5.0), entry("b")))
    assert await peer.hear() == wire.Update(term=TERM, number=1, model=entry("a", timeout_s=5.0))
    wired.server.publish(table(entry("b")))
    assert await peer.hear() == wire.Removal(term=TERM, number=2, name="a")
    later = await wired.connect(1, "e1")
    assert await later.hear() == wire.Snapshot(term=TERM, number=2, models=(entry("b"),))


async def test_reports_and_wakes_arrive(wired: Wired) -> None:
    peer = await wired.connect()
    await peer.report((TERM, 0), in_flight=2)
    await peer.wake("digits")
    await wired.until(lambda: bool(wired.wakes))
    assert wired.wakes == ["digits"]
    assert wired.reports[0].models[0].name == "digits"
    assert wired.server.workers[0].applied == (TERM, 0)


async def test_what_is_said_before_hello_counts_for_nothing_and_nonsense_ends_it(wired: Wired) -> None:
    peer = await wired.connect(hello=False)
    await peer.report((TERM, 0))
    await peer.say('{"type": "nonsense"}')
    assert await peer.ended()
    assert wired.reports == []
    assert wired.server.workers == {}


async def test_a_worker_that_comes_again_is_told_from_a_new_one(wired: Wired) -> None:
    first = await wired.connect(epoch="e0")
    again = await wired.connect(epoch="e0")
    assert await first.ended()
    await wired.connect(epoch="e1")
    assert await again.ended()
    assert wired.came == [(0, False), (0, True), (0, False)]
    assert list(wired.server.workers) == [0]
    assert wired.server.workers[0].connected


async def test_drained_is_when_every_worker_knows_and_has_nothing_in_flight(wired: Wired) -> None:
    wired.server.publish(table(entry()))
    peer = await wired.connect()
    await peer.hear()
    await peer.report((TERM, 0))
    await wired.until(lambda: len(wired.reports) == 1)
    assert not wired.server.drained("digits-1")
    wired.server.publish(table(entry(draining=True)))
    update = await peer.hear()
    assert not wired.server.drained("digits-1")
    await peer.report((TERM, update.number), in_flight=1)
    await wired.until(lambda: len(wired.reports) == 2)
    assert not wired.server.drained("digits-1")
    await peer.report((TERM, update.number))
    await wired.until(lambda: len(wired.reports) == 3)
    assert wired.server.drained("digits-1")
    wired.server.publish(table(entry()))
    assert not wired.server.drained("digits-1")


async def test_the_replicas_of_a_deleted_model_are_drained_when_nothing_is_in_flight_to_them(wired: Wired) -> None:
    wired.server.publish(table(entry()))
    peer = await wired.connect()
    await peer.hear()
    await peer.report((TERM, 0), in_flight=1)
    await wired.until(lambda: len(wired.reports) == 1)
    wired.server.publish({})
    removal = await peer.hear()
    assert not wired.server.drained("digits-1")
    await peer.report((TERM, removal.number), in_flight=1)
    await wired.until(lambda: len(wired.reports) == 2)
    assert not wired.server.drained("digits-1")
    await peer.report((TERM, removal.number))
    await wired.until(lambda: len(wired.reports) == 3)
    assert wired.server.drained("digits-1")


async def test_nothing_is_drained_while_a_worker_is_away(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        wired = Wired(stack, tmp_path / "wire.sock", workers=2)
        await wired.server.start(wired.path)
        stack.push_async_callback(wired.server.close)
        wired.server.publish(table(entry(draining=True)))
        one = await wired.connect(0, "e0")
        await one.report((TERM, 0))
        await wired.until(lambda: len(wired.reports) == 1)
        assert not wired.server.drained("digits-1")
        two = await wired.connect(1, "e1")
        await two.report((TERM, 0))
        await wired.until(lambda: len(wired.reports) == 2)
        assert wired.server.drained("digits-1")
        await two.close()
        await wired.until(lambda: not wired.server.workers[1].connected)
        assert not wired.server.drained("digits-1")


async def test_a_server_takes_the_place_of_a_dead_ones_socket(wired: Wired, tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    path.touch()
    other = WireServer(TERM, 1, lambda _: None, lambda _: None, lambda *_: None)
    await other.start(path)
    assert path.is_socket()
    await other.close()


async def test_a_socket_that_somebody_removed_is_made_again(wired: Wired) -> None:
    wired.server.publish(table(entry()))
    before = await wired.connect(0, "e0")
    await before.hear()
    wired.path.unlink()
    await wired.server.listen_again(wired.path)
    await wired.server.listen_again(wired.path)
    assert wired.path.stat().st_mode & 0o777 == 0o600
    after = await wired.connect(1, "e1")
    assert (await after.hear()).models == (entry(),)
    wired.server.publish(table())
    assert await before.hear() == await after.hear()
