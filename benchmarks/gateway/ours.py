"""Our gateway as users run it: worker processes that a controller feeds over the wire, and that report to it.

Everything that is on by default is on, and so is what a fleet of several tenants adds: who asks is found by their key,
the tenant has a rate and a concurrency limit, each endpoint has a concurrency limit; request ids, metrics and reports
are always on. The controller's side of the wire is the real one, in a thread of the benchmark.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from benchmarks.gateway import programs, traffic
from benchmarks.gateway.peers import Place, Proxy
from benchmarks.local import free_ports, tail, wait_until
from gateway import native, wire
from tangram.control.wire_server import WireServer

OURS: Final = "ours"
_APPLY_S: Final = 20.0
#: Limits that are looked at with each request and never reached.
_AMPLE_RATE: Final = 1_000_000.0
_AMPLE_FLIGHT: Final = 20_000


def table(upstream: Sequence[int]) -> dict[str, wire.ModelEntry]:
    """Two models of two replicas."""
    entries = {}
    for number, name in enumerate(traffic.MODELS):
        endpoints = tuple(
            wire.EndpointEntry(
                id=f"{name}-{index}",
                host="127.0.0.1",
                port=port,
                concurrency=_AMPLE_FLIGHT,
                slot=number * len(upstream) + index,
            )
            for index, port in enumerate(upstream)
        )
        entries[name] = wire.ModelEntry(name=name, endpoints=endpoints, max_replicas=len(upstream))
    return entries


def settings() -> wire.Settings:
    """A tenant with the key that the requests show."""
    key = wire.TenantKey(id=traffic.KEY.split("_")[1], sha256=hashlib.sha256(traffic.KEY.encode()).hexdigest())
    limit = wire.TenantLimit(requests_per_s=_AMPLE_RATE, burst=int(_AMPLE_RATE), concurrency=_AMPLE_FLIGHT, slot=100)
    tenant = wire.TenantEntry(name="bench", keys=(key,), models=traffic.MODELS, limits=(limit,))
    return wire.Settings(tenants=(tenant,), require_key=True)


class Controller:
    """The controller's end of the wire, in a thread."""

    def __init__(self, socket: Path, workers: int, upstream: Sequence[int]) -> None:
        self._socket = socket
        self._workers = workers
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="controller", daemon=True)
        self._server: WireServer | None = None

    def start(self) -> None:
        """Listen for workers."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> None:
        self._server = WireServer(1, self._workers, lambda report: None, lambda model: None, lambda index, same: None)
        await self._server.start(self._socket)
        self._server.publish_settings(settings())
        self._server.publish(table(self._upstream))

    def fed(self) -> bool:
        """Whether each worker has the table."""
        known = list(self._server.workers.values()) if self._server is not None else []
        return len(known) == self._workers and all(w.connected and w.applied > (0, 0) for w in known)

    def close(self) -> None:
        """Let the workers go."""
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def compiled(pid: int) -> bool:
    """Whether a worker has the library of the compiled modules in its memory."""
    return native.LIBRARY in Path(f"/proc/{pid}/maps").read_text(encoding="ascii", errors="replace")


@contextmanager
def running(place: Place, workers: int = 1, name: str = OURS) -> Iterator[Proxy]:
    """Our gateway until the end of the block. Raises programs.Failed."""
    place.folder.mkdir(exist_ok=True)
    (port,) = free_ports(1)
    controller = Controller(place.folder / "wire.sock", workers, place.upstream)
    controller.start()
    with ExitStack() as stack:
        stack.callback(controller.close)
        log = place.folder / f"{name}.log"
        pids: list[int] = []
        for index in range(workers):
            argv: list[str | Path] = [sys.executable, "-m", "gateway.worker", "--listen", f"127.0.0.1:{port}"]
            argv += ["--index", str(index), "--workers", str(workers), "--controller", place.folder / "wire.sock"]
            argv += ["--cache", place.folder / f"table-{index}.json", "--limits", place.folder / "limits.shm"]
            pids.append(stack.enter_context(programs.serving(argv, port, log, place.cores)))
        if not wait_until(controller.fed, _APPLY_S):
            raise programs.Failed(f"the workers did not take the table:\n{tail(log)}")
        yield Proxy(name, port, pids, native=all(map(compiled, pids)))
