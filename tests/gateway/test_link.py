"""The worker's end of the wire, against a controller on a Unix socket."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from gateway import wire
from gateway.link import Link, TableCache


class Controller:
    """Records what workers say and sends what a test tells it to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: list[wire.Hello | wire.Report | wire.Wake] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.greeting: wire.Snapshot | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/wire", self._serve)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.path)).start()

    async def stop(self) -> None:
        for socket in self.sockets:
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self.sockets.clear()

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for frame in socket:
            message = wire.parse_up(frame.data)
            self.heard.append(message)
            if isinstance(message, wire.Hello) and self.greeting is not None:
                await self.send(self.greeting)
        return socket

    async def send(self, message: wire.Snapshot | wire.Update | wire.Removal) -> None:
        await self.sockets[-1].send_str(message.model_dump_json())

    def of(self, kind: type) -> list:
        return [m for m in self.heard if isinstance(m, kind)]


@pytest.fixture
async def controller(tmp_path: Path) -> AsyncIterator[Controller]:
    made = Controller(tmp_path / "wire.sock")
    yield made
    await made.stop()


@pytest.fixture
async def linked(gateway, tmp_path: Path) -> AsyncIterator[Link]:
    cache = TableCache(tmp_path / "table.json", gateway.dispatcher.table.snapshot)
    link = Link(
        tmp_path / "wire.sock",
        wire.Hello(worker=0, epoch="e", pid=1, port=gateway.front.port, admin_port=2),
        gateway.dispatcher,
        cache,
        random.Random(0),
        carry_out=gateway.engine.carry_out,
        table_changed=lambda: gateway.pools.retain(gateway.dispatcher.endpoints()),
    )
    gateway.engine._wake = link.wake
    gateway.engine._report = link.report_now
    task = asyncio.create_task(link.run())
    yield link
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    cache.close()


def snapshot(number: int, *models: wire.ModelEntry, term: int = 1) -> wire.Snapshot:
    return wire.Snapshot(term=term, number=number, models=models)


INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: gw\r\nContent-Length: 2\r\n\r\nhi"


async def test_a_connection_begins_with_hello_and_a_whole_report(linked, controller, gateway, kit):
    gateway.model("old")
    await controller.start()
    await kit.until(lambda: controller.of(wire.Report))
    assert isinstance(controller.heard[0], wire.Hello)
    first = controller.of(wire.Report)[0]
    assert (first.worker, first.epoch, [m.name for m in first.models]) == (0, "e", ["old"])
    await kit.until(lambda: len(controller.of(wire.Report)) >= 3)


async def test_a_cold_model_is_woken_at_once_and_served_when_ready(linked, controller, gateway, replica, kit):
    controller.greeting = snapshot(1, wire.ModelEntry(name="m"))
    await controller.start()
    await kit.until(lambda: gateway.dispatcher.version == (1, 1))
    client = await gateway.client()
    client.send(INFER)
    await kit.until(lambda: controller.of(wire.Wake))
    one = await replica()
    entry = wire.ModelEntry(name="m", endpoints=(gateway.endpoint(one),))
    await controller.send(wire.Update(term=1, number=2, model=entry))
    assert (await client.response()).body == b"hi"
    assert [w.model for w in controller.of(wire.Wake)] == ["m"]
    await kit.until(lambda: any(m.completions for r in controller.of(wire.Report) for m in r.models))


async def test_a_drain_is_acknowledged_at_once(linked, controller, gateway, replica, kit, monkeypatch):
    monkeypatch.setattr("gateway.link._REPORT_S", 3600.0)
    goes_on = asyncio.Event()

    async def answer(seen, writer, reader):
        await goes_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    one = await replica(answer)
    controller.greeting = snapshot(1, wire.ModelEntry(name="m", endpoints=(gateway.endpoint(one),)))
    await controller.start()
    await kit.until(lambda: gateway.dispatcher.version == (1, 1))
    client = await gateway.client()
    client.send(INFER)
    await kit.until(lambda: one.seen)
    draining = wire.ModelEntry(name="m", endpoints=(gateway.endpoint(one, draining=True),))
    await controller.send(wire.Update(term=1, number=2, model=draining))

    def last(applied: tuple[int, int]) -> list[int]:
        reports = [r for r in controller.of(wire.Report) if r.applied == applied]
        return [e.in_flight for r in reports for m in r.models for e in m.endpoints]

    await kit.until(lambda: last((1, 2)) == [1])
    goes_on.set()
    await client.response()
    await kit.until(lambda: last((1, 2))[-1:] == [0])


async def test_a_worker_serves_on_without_its_controller_and_connects_again(linked, controller, gateway, replica, kit):
    one = await replica()
    controller.greeting = snapshot(1, wire.ModelEntry(name="m", endpoints=(gateway.endpoint(one),)))
    await controller.start()
    await kit.until(lambda: gateway.dispatcher.version == (1, 1))
    await controller.stop()
    await kit.until(lambda: not linked.connected)
    assert (await gateway.ask(INFER)).body == b"hi"
    next_one = Controller(controller.path)
    next_one.greeting = snapshot(0, wire.ModelEntry(name="n"), term=2)
    await next_one.start()
    await kit.until(lambda: gateway.dispatcher.names == ["n"])
    assert [m.name for m in next_one.of(wire.Report)[0].models] == ["m"]
    await next_one.stop()


async def test_models_that_wait_are_woken_at_a_controller_that_connects_later(linked, controller, gateway, kit):
    gateway.model("m")
    client = await gateway.client()
    client.send(INFER)
    await kit.until(lambda: gateway.meter().queue.value == 1)
    await controller.start()
    await kit.until(lambda: [w.model for w in controller.of(wire.Wake)] == ["m"])


async def test_the_table_is_kept_on_disk_whole(linked, controller, gateway, kit, tmp_path):
    controller.greeting = snapshot(7, wire.ModelEntry(name="m", expected_ready_s=9.0))
    await controller.start()
    path = tmp_path / "table.json"
    await kit.until(path.exists)
    loaded = TableCache(path, gateway.dispatcher.table.snapshot).load()
    assert (loaded.term, loaded.number, [m.name for m in loaded.models]) == (1, 7, ["m"])
    assert loaded.models[0].expected_ready_s is None
    assert [p.name for p in tmp_path.iterdir() if "table" in p.name] == ["table.json"]


@pytest.mark.parametrize("content", ["", "{", '{"type":"removal","term":1,"number":1,"name":"m"}', '{"type":"x"}'])
async def test_a_broken_cache_is_no_table(gateway, tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    assert TableCache(path, gateway.dispatcher.table.snapshot).load() is None


async def test_what_is_not_of_the_wire_ends_the_connection_but_not_the_worker(linked, controller, gateway, kit):
    await controller.start()
    await kit.until(lambda: controller.sockets)
    await controller.sockets[-1].send_str('{"type":"surprise"}')
    await kit.until(lambda: len(controller.of(wire.Hello)) == 2)
