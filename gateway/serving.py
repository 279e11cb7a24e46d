"""The parts of a gateway worker put together, and its life from the first connection to the last."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import random
import signal
import socket
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
from gateway.listener import inherited_socket, listening_socket
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

    async def run(self, native: str) -> None:
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
        log.info("native code: %s", native)
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


async def serve(options: argparse.Namespace, native: str) -> None:
    """Run a worker until a signal tells it to leave; `native` says whether its code is compiled. Raises StartError."""
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
    await worker.run(native)
    heartbeat.close()
