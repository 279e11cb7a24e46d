"""Active probes of ejected endpoints: GET of the model's readiness path, over a connection of its own.

While any endpoint is ejected a timer asks the dispatcher whom to probe; it stops with the last one's return.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from gateway.dispatch import Dispatcher
from gateway.leases import Effects, Served
from gateway.routing import Endpoint

_PERIOD_S: Final = 0.1
_STATUS_LINE: Final = 4096


class Prober:
    """Probes when `expect` says that there may be something to probe."""

    def __init__(self, dispatcher: Dispatcher, carry_out: Callable[[Effects], None]) -> None:
        self._dispatcher = dispatcher
        self._carry_out = carry_out
        self._timer: asyncio.TimerHandle | None = None
        self._probes: set[asyncio.Task[None]] = set()

    def expect(self) -> None:
        """Endpoints are ejected."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD_S, self._look)

    def close(self) -> None:
        """Probe no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for probe in self._probes:
            probe.cancel()

    def _look(self) -> None:
        self._timer = None
        for served, endpoint in self._dispatcher.probes(monotonic()):
            probe = asyncio.get_running_loop().create_task(self._probe(served, endpoint))
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)
        if self._dispatcher.ailing:
            self.expect()

    async def _probe(self, served: Served, endpoint: Endpoint) -> None:
        health = served.route.entry.health
        well = await answers(endpoint.host, endpoint.port, health.probe_path, health.probe_timeout_s)
        self._carry_out(self._dispatcher.probed(served, endpoint, monotonic(), well=well))


async def answers(host: str, port: int, path: str, timeout_s: float) -> bool:
    """Whether a GET is answered with 2xx in time."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, limit=_STATUS_LINE)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode("ascii"))
            line = await reader.readuntil(b"\n")
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return False
    finally:
        if writer is not None:
            writer.transport.abort()
    version, _, rest = line.partition(b" ")
    return version.startswith(b"HTTP/1.") and rest[:1] == b"2"
