"""A gateway worker: one process with one event loop, started and watched by a supervisor.

    python -m gateway.worker --listen 127.0.0.1:8080 --index 0 --workers 1 \\
        --controller wire.sock --cache table-0.json --limits limits.shm

It serves the table it finds in its cache at once, connects to the controller for a newer one, and serves on without.
SIGTERM or SIGINT: /readyz turns false, no more connections are accepted, what is in flight finishes within 30 s, and
the process ends with 0; a second signal cuts that short. An address that is in use, or a file that cannot be made,
gives one line and exit code 2.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Final

from gateway import wire
from gateway.app import Admin, Front
from gateway.dispatch import Dispatcher
from gateway.engine import Engine
from gateway.heartbeat import Heartbeat
from gateway.limits import Limits
from gateway.link import Link, TableCache
from gateway.listener import inherited_socket, listening_socket, parse_address
from gateway.logs import configure
from gateway.meter import Meter
from gateway.pools import Pools
from gateway.proxy import Proxy
from gateway.rows import Rows, TooManyWorkers
from gateway.tls import BadCertificate, Certificate

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger("gateway.worker")

_DRAIN_S: Final = 30.0
#: How soon what a worker held is free that died.
_BURY_S: Final = 0.25
#: glibc's malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK: Final = 1024 * 1024
_KEPT_HEAP: Final = 4 * 1024 * 1024


class StartError(Exception):
    """The worker cannot start; the text says why and what would help."""


def claim_row(path: Path) -> Rows:
    """A place in the memory that workers share, which is made where it is missing."""
    try:
        return Rows(path)
    except OSError as error:
        raise StartError(f"--limits {path}: {error.strerror}; give a file in a folder that can be written") from None
    except TooManyWorkers as error:
        raise StartError(f"--limits {path}: {error}") from None


class Worker:
    """The parts of one worker, put together. Made within a running event loop."""

    def __init__(self, options: argparse.Namespace, listener: socket.socket) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._rng = random.Random()
        self._epoch = f"{self._rng.getrandbits(64):016x}"
        self._rows = claim_row(options.limits) if options.workers > 1 else None
        self._undertaker: asyncio.TimerHandle | None = None
        limits = Limits(self._rows.counts() if self._rows is not None else None)
        self.dispatcher = Dispatcher(limits, Meter(options.index, self._epoch, monotonic()), self._rng)
        self._pools = Pools()
        self._cache = TableCache(options.cache, self.dispatcher.table.snapshot)
        self._link: Link | None = None
        self._page: CollectorRegistry | None = None
        self._leave = asyncio.Event()
        self._engine = Engine(self.dispatcher, self._pools, wake=self._wake, report=self._report)
        self._proxy = Proxy(self._engine, self._rng)
        self._certificate: Certificate | None = None
        if options.tls_cert is not None:
            try:
                self._certificate = Certificate(options.tls_cert, options.tls_key)
            except BadCertificate as error:
                raise StartError(str(error)) from None
        self.front = Front(
            self._proxy,
            listener,
            self._certificate.context if self._certificate else None,
            siblings=options.workers > 1,
            fast=options.fast_path,
        )
        self.admin = Admin(metrics=self._metrics, ready=self.ready)

    @property
    def connected(self) -> bool:
        """Whether the controller is there."""
        return self._link is not None and self._link.connected

    def ready(self) -> bool:
        """Whether it has a table and stays."""
        return self.dispatcher.version != (0, 0) and not self._proxy.closing

    def leave(self) -> None:
        """Finish and end; at once if told twice."""
        if self._leave.is_set():
            self.front.hasten()
        self._leave.set()

    async def run(self) -> None:
        """Serve until told to leave. Raises StartError."""
        options = self._options
        try:
            await self.admin.start(options.admin_host)
        except OSError as error:
            raise StartError(f"--admin-host {options.admin_host}: {error.strerror}") from None
        cached = self._cache.load()
        if cached is not None and (effects := self.dispatcher.apply(cached, monotonic())) is not None:
            self._engine.carry_out(effects)
            self._table_changed()
            log.info("serving %d models from the cached table", len(self.dispatcher.names))
        self._bury()
        await self.front.start()
        if self._certificate is not None:
            self._certificate.watch()
        hello = wire.Hello(
            worker=options.index,
            epoch=self._epoch,
            pid=os.getpid(),
            port=self.front.port,
            admin_port=self.admin.port,
        )
        self._link = Link(
            options.controller,
            hello,
            self.dispatcher,
            self._cache,
            self._rng,
            carry_out=self._engine.carry_out,
            table_changed=self._table_changed,
        )
        log.info(
            "worker %d listens on %s:%d, admin on %s:%d",
            options.index,
            options.listen[0],
            self.front.port,
            options.admin_host,
            self.admin.port,
        )
        conversation = asyncio.create_task(self._link.run(), name="link")
        # What was imported stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await self._leave.wait()
        log.info("leaving: finishing what is in flight")
        if not await self.front.drain(_DRAIN_S):
            log.warning("left with requests in flight")
        await self._link.farewell()
        conversation.cancel()
        await asyncio.gather(conversation, return_exceptions=True)
        self._cache.close()
        self._engine.close()
        self._pools.close()
        if self._certificate is not None:
            self._certificate.close()
        await self.admin.close()
        if self._undertaker is not None:
            self._undertaker.cancel()
        if self._rows is not None:
            self._rows.close()
        log.info("left")

    def _bury(self) -> None:
        """Look, every moment, whether another worker has died."""
        if self._rows is not None:
            for row in self._rows.bury():
                log.info("the worker of row %d is gone; what it held is free", row)
            self._undertaker = self._loop.call_later(_BURY_S, self._bury)

    def _table_changed(self) -> None:
        self._pools.retain(self.dispatcher.leaving())
        self._pools.prepare((e.id, e.host, e.port) for e in self.dispatcher.endpoints().values() if not e.leaving)

    def _wake(self, model: str) -> None:
        if self._link is not None:
            self._link.wake(model)

    def _report(self) -> None:
        if self._link is not None:
            self._link.report_now()

    def _metrics(self) -> bytes:
        from gateway import metrics

        if self._page is None:
            self._page = metrics.registry(
                metrics.WorkerCollector(
                    self.dispatcher,
                    connections=self._pools.counts,
                    clients=lambda: self.front.clients,
                    connected=lambda: self.connected,
                    ready=self.ready,
                    now=monotonic,
                )
            )
        return metrics.render(self._page)


def keep_heap() -> None:
    """Keep freed memory of the size of a few bodies, instead of giving it back and asking for it with each request."""
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_HEAP)


async def serve(options: argparse.Namespace) -> None:
    """Run a worker until a signal tells it to leave. Raises StartError."""
    host, port = options.listen
    try:
        listener = inherited_socket() or listening_socket(host, port)
    except OSError as error:
        raise StartError(f"--listen {host}:{port}: {error.strerror}; choose another address") from None
    worker = Worker(options, listener)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.leave)
    heartbeat = Heartbeat(loop)
    await worker.run()
    heartbeat.close()


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options of a worker; ends the process with code 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="gateway.worker", description="One worker of the gateway.")
    parser.add_argument("--listen", type=_address, required=True, metavar="HOST:PORT", help="where clients connect")
    parser.add_argument("--index", type=int, required=True, help="which of the workers this is, from 0")
    parser.add_argument("--workers", type=int, default=1, help="how many workers there are")
    parser.add_argument("--controller", type=Path, required=True, help="the controller's Unix socket")
    parser.add_argument("--cache", type=Path, required=True, help="file that keeps the last table")
    parser.add_argument("--limits", type=Path, required=True, help="file of the memory that workers share")
    parser.add_argument("--admin-host", default="127.0.0.1", help="address of /metrics, /healthz and /readyz")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain (PEM); it is read again when it changes")
    parser.add_argument("--tls-key", type=Path, help="its private key (PEM)")
    parser.add_argument(
        "--no-fast-path", dest="fast_path", action="store_false", help="take every request through the full path"
    )
    parser.add_argument("--log-json", action="store_true", help="log one JSON object a line")
    options = parser.parse_args(arguments)
    if options.workers < 1 or not 0 <= options.index < options.workers:
        parser.error(f"--index {options.index} is not that of one of {options.workers} workers")
    if (options.tls_cert is None) != (options.tls_key is None):
        parser.error("--tls-cert and --tls-key belong together")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker with these command line arguments; its exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    configure(as_json=options.log_json)
    import uvloop

    keep_heap()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(options))
    except StartError as error:
        print(f"gateway worker: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
