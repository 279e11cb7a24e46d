"""The controller's end of the wire to the gateway workers (see `gateway.wire`), on a Unix socket.

`publish` compares the table with what was last sent and sends what changed. A worker that connects gets a snapshot,
but not before the first `publish`: until a restarted controller has found its replicas again, a worker is better off
with the table that it has.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import WSMsgType, web
from pydantic import BaseModel, ValidationError

from gateway import wire

log = logging.getLogger("tangram.wire")

#: A worker that takes longer than this to read one message is cut off; it connects again and gets a snapshot.
SEND_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class Worker:
    """What is known of one gateway worker."""

    hello: wire.Hello
    connected: bool = True
    applied: wire.Version = (0, 0)
    in_flight: dict[str, int] = field(default_factory=dict)
    """Endpoint id -> requests in flight, as of the last report."""


class WireServer:
    """Keeps the workers' tables up to date and takes their reports."""

    def __init__(
        self,
        term: int,
        expected_workers: int,
        on_report: Callable[[wire.Report], None],
        on_wake: Callable[[str], None],
        on_worker: Callable[[int, bool], None],
    ) -> None:
        """`on_worker(index, same_process)` is called when a worker connects."""
        self._term = term
        self._expected = expected_workers
        self._number = 0
        self._on_report = on_report
        self._on_wake = on_wake
        self._on_worker = on_worker
        self._table: dict[str, wire.ModelEntry] = {}
        self._settings = wire.Settings()
        self._published = asyncio.Event()
        self._sockets: dict[int, web.WebSocketResponse] = {}
        self._outboxes: dict[int, asyncio.Queue[BaseModel]] = {}
        self._marked_draining: dict[str, int] = {}
        self._listed: set[str] = set()
        """Endpoints in the table."""
        self._left = 0
        """Number of the last message with which an endpoint left the table."""
        self.workers: dict[int, Worker] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket that only this user may open."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        app = web.Application()
        app.router.add_get("/wire", self._connected)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        await self._listen(path)

    async def listen_again(self, path: Path) -> None:
        """Listen anew where somebody removed the socket: workers that are connected stay so, others could not come."""
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            await self._listen(path)
            log.warning("%s was gone; listening there again", path)

    async def _listen(self, path: Path) -> None:
        assert self._runner is not None
        await web.UnixSite(self._runner, str(path)).start()
        path.chmod(0o600)

    async def close(self) -> None:
        """Let the workers go; they serve on from their tables."""
        for socket in list(self._sockets.values()):
            await socket.close()
        if self._runner is not None:
            await self._runner.cleanup()

    # --- down ---

    def publish(self, table: Mapping[str, wire.ModelEntry]) -> None:
        """Send what changed since the last call; the first call lets waiting workers have their snapshot."""
        first = not self._published.is_set()
        for name in [n for n in self._table if n not in table]:
            del self._table[name]
            if not first:
                self._number += 1
                self._send(wire.Removal(term=self._term, number=self._number, name=name))
        for name, entry in table.items():
            before = self._table.get(name)
            if before is not None and _same(before, entry):
                continue
            self._table[name] = entry
            if not first:
                self._number += 1
                self._send(wire.Update(term=self._term, number=self._number, model=entry))
            self._mark_draining(entry)
        listed = {e.id for entry in self._table.values() for e in entry.endpoints}
        if not self._listed <= listed:
            self._left = self._number
        self._listed = listed
        self._marked_draining = {r: n for r, n in self._marked_draining.items() if r in listed}
        self._published.set()

    def publish_settings(self, settings: wire.Settings) -> None:
        """Send what holds for all models, where that is news."""
        if settings == self._settings:
            return
        self._settings = settings
        if self._published.is_set():
            self._number += 1
            self._send(wire.SettingsUpdate(term=self._term, number=self._number, settings=settings))

    def _mark_draining(self, entry: wire.ModelEntry) -> None:
        for endpoint in entry.endpoints:
            if endpoint.draining:
                self._marked_draining.setdefault(endpoint.id, self._number)
            else:
                self._marked_draining.pop(endpoint.id, None)

    def drained(self, replica: str) -> bool:
        """Whether every worker knows that the replica drains or is gone, and has nothing in flight to it."""
        number = self._marked_draining.get(replica) if replica in self._listed else self._left
        if number is None or not self._published.is_set() or len(self.workers) < self._expected:
            return False
        return all(
            w.connected and w.applied >= (self._term, number) and not w.in_flight.get(replica)
            for w in self.workers.values()
        )

    def gone(self, index: int) -> None:
        """The worker's process has ended: what it had in flight is over."""
        self.workers.pop(index, None)

    def _send(self, message: BaseModel) -> None:
        for outbox in self._outboxes.values():
            outbox.put_nowait(message)

    # --- up ---

    async def _connected(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(heartbeat=None, max_msg_size=64 * 1024 * 1024)
        await socket.prepare(request)
        index: int | None = None
        sender: asyncio.Task[None] | None = None
        try:
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    break
                try:
                    message = wire.parse_up(frame.data)
                except ValidationError as error:
                    log.warning("a gateway worker sent what is not of the wire: %s", error)
                    break
                if isinstance(message, wire.Hello):
                    index = message.worker
                    await self._welcome(message, socket)
                    sender = asyncio.create_task(self._feed(index, socket), name=f"wire-{index}")
                elif index is not None and self._sockets.get(index) is socket:
                    self._take(index, message)
        finally:
            if sender is not None:
                sender.cancel()
            if index is not None and self._sockets.get(index) is socket:
                del self._sockets[index]
                self._outboxes.pop(index, None)
                if index in self.workers:
                    self.workers[index].connected = False
                log.info("gateway worker %d disconnected", index)
        return socket

    async def _welcome(self, hello: wire.Hello, socket: web.WebSocketResponse) -> None:
        index = hello.worker
        former = self._sockets.pop(index, None)
        self._sockets[index] = socket
        known = self.workers.get(index)
        same = known is not None and known.hello.epoch == hello.epoch
        self.workers[index] = Worker(hello)
        log.info("gateway worker %d connected (pid %d, port %d)", index, hello.pid, hello.port)
        self._on_worker(index, same)
        if former is not None:
            await former.close()

    def _take(self, index: int, message: wire.Report | wire.Wake) -> None:
        if isinstance(message, wire.Wake):
            self._on_wake(message.model)
            return
        worker = self.workers.get(index)
        if worker is None:
            return
        worker.applied = message.applied
        for model in message.models:
            for endpoint in model.endpoints:
                worker.in_flight[endpoint.id] = endpoint.in_flight
        worker.in_flight = {e: n for e, n in worker.in_flight.items() if e in self._listed or n}
        self._on_report(message)

    async def _feed(self, index: int, socket: web.WebSocketResponse) -> None:
        await self._published.wait()
        outbox: asyncio.Queue[BaseModel] = asyncio.Queue()
        self._outboxes[index] = outbox
        models = tuple(self._table.values())
        outbox.put_nowait(wire.Snapshot(term=self._term, number=self._number, models=models, settings=self._settings))
        try:
            while True:
                text = (await outbox.get()).model_dump_json()
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await socket.send_str(text)
        except (TimeoutError, ConnectionError):
            await socket.close()


def _same(one: wire.ModelEntry, other: wire.ModelEntry) -> bool:
    # A countdown is no news: a worker counts down by itself from what it was last told.
    ignored = {"expected_ready_s": None}
    return one.model_copy(update=ignored) == other.model_copy(update=ignored)
