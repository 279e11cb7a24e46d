"""The worker's end of the wire: connects to the controller, again and again, and keeps the last table on disk.

Reports go out every second, and at once (at most 50 a second) when somebody waits for a drain. A worker that cannot
reach the controller serves on; it tries again with a back-off that is random, so that workers do not come in step.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import Final

from aiohttp import ClientError, ClientSession, ClientWebSocketResponse, UnixConnector, WSMsgType
from pydantic import ValidationError

from gateway import wire
from gateway.dispatch import Dispatcher
from gateway.leases import Effects

log = logging.getLogger("gateway.link")

_REPORT_S: Final = 1.0
_URGENT_GAP_S: Final = 0.02
_BACKOFF_MIN_S: Final = 0.05
_BACKOFF_MAX_S: Final = 1.0
_CONNECT_S: Final = 5.0
_SAVE_DELAY_S: Final = 0.2
_MAX_MESSAGE: Final = 64 * 1024 * 1024


class TableCache:
    """The last table on disk; a change is written a moment later, so that a burst of them is written once."""

    def __init__(self, path: Path, snapshot: Callable[[], wire.Snapshot]) -> None:
        self._path = path
        self._snapshot = snapshot
        self._pending: asyncio.TimerHandle | None = None

    def load(self) -> wire.Snapshot | None:
        """The table of an earlier worker; None where there is none, or none that can be read."""
        try:
            message = wire.parse_down(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("the cached table %s cannot be used: %s", self._path, error)
            return None
        if not isinstance(message, wire.Snapshot):
            log.warning("the cached table %s cannot be used: it is no snapshot", self._path)
            return None
        # How long a start takes was true when it was written.
        models = tuple(m.model_copy(update={"expected_ready_s": None}) for m in message.models)
        return message.model_copy(update={"models": models})

    def changed(self) -> None:
        """The table is another."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(_SAVE_DELAY_S, self.save)

    def save(self) -> None:
        """Write the table now, such that a reader sees the old one or the new one."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}.new")
        try:
            beside.write_text(self._snapshot().model_dump_json(), encoding="utf-8")
            beside.replace(self._path)
        except OSError as error:
            log.warning("the table cannot be cached in %s: %s", self._path, error)

    def close(self) -> None:
        """Write what is still to be written."""
        if self._pending is not None:
            self.save()


class Link:
    """One worker's connection to the controller."""

    def __init__(
        self,
        socket_path: Path,
        hello: wire.Hello,
        dispatcher: Dispatcher,
        cache: TableCache,
        rng: Random,
        *,
        carry_out: Callable[[Effects], None],
        table_changed: Callable[[], None],
    ) -> None:
        self.connected = False
        self._path = socket_path
        self._hello = hello
        self._dispatcher = dispatcher
        self._cache = cache
        self._rng = rng
        self._carry_out = carry_out
        self._table_changed = table_changed
        self._wakes: list[str] = []
        self._socket: ClientWebSocketResponse | None = None
        self._urgent = asyncio.Event()

    def wake(self, model: str) -> None:
        """Tell the controller that a model without an endpoint was asked for.

        Without a controller nothing is kept: a connection begins by waking every model that is waited for.
        """
        if self.connected:
            self._wakes.append(model)
            self._urgent.set()

    def report_now(self) -> None:
        """Send a report before the next second."""
        self._urgent.set()

    async def farewell(self) -> None:
        """The last report, where the controller is there to take it."""
        if self._socket is not None:
            with suppress(ClientError, OSError, TimeoutError):
                async with asyncio.timeout(_CONNECT_S):
                    await self._report(self._socket, full=False)

    async def run(self) -> None:
        """Stay connected until cancelled."""
        backoff = _BACKOFF_MIN_S
        failing = False
        while True:
            try:
                async with ClientSession(connector=UnixConnector(str(self._path))) as session:
                    async with asyncio.timeout(_CONNECT_S):
                        socket = await session.ws_connect("http://controller/wire", max_msg_size=_MAX_MESSAGE)
                    log.info("connected to the controller")
                    backoff, failing = _BACKOFF_MIN_S, False
                    async with socket:
                        await self._converse(socket)
                log.info("the controller closed the connection")
            except (ClientError, OSError, TimeoutError) as error:
                if not failing:
                    log.info("no controller: %s; serving on", error)
                failing = True
            except Exception:
                log.exception("the conversation with the controller failed; connecting again")
            await asyncio.sleep(backoff * (0.5 + self._rng.random() / 2))
            backoff = min(_BACKOFF_MAX_S, 2 * backoff)

    async def _converse(self, socket: ClientWebSocketResponse) -> None:
        self._wakes.clear()
        self.connected = True
        self._socket = socket
        sender: asyncio.Task[None] | None = None
        try:
            await socket.send_str(self._hello.model_dump_json())
            sender = asyncio.create_task(self._send(socket), name="report")
            async for frame in socket:
                if frame.type is not WSMsgType.TEXT:
                    break
                try:
                    message = wire.parse_down(frame.data)
                except ValidationError as error:
                    log.error("the controller sent what is not of the wire: %s", error)
                    break
                self._take(message)
        finally:
            self.connected = False
            self._socket = None
            if sender is not None:
                sender.cancel()

    def _take(self, message: wire.Snapshot | wire.Update | wire.Removal | wire.SettingsUpdate) -> None:
        effects = self._dispatcher.apply(message, monotonic())
        if effects is not None:
            self._table_changed()
            self._cache.changed()
            self._carry_out(effects)

    async def _send(self, socket: ClientWebSocketResponse) -> None:
        try:
            await self._report(socket, full=True)
            for name in self._dispatcher.wanted():
                self.wake(name)
            due = monotonic() + _REPORT_S
            while True:
                try:
                    async with asyncio.timeout_at(due):
                        await self._urgent.wait()
                except TimeoutError:
                    due = max(due + _REPORT_S, monotonic())
                self._urgent.clear()
                wakes, self._wakes = self._wakes, []
                for name in wakes:
                    await socket.send_str(wire.Wake(worker=self._hello.worker, model=name).model_dump_json())
                await self._report(socket, full=False)
                await asyncio.sleep(_URGENT_GAP_S)
        except (ClientError, ConnectionError):
            await socket.close()
        except Exception:
            log.exception("reports to the controller failed; connecting again")
            await socket.close()

    async def _report(self, socket: ClientWebSocketResponse, *, full: bool) -> None:
        report = self._dispatcher.report(monotonic(), full=full)
        await socket.send_str(report.model_dump_json())
