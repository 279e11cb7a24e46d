"""The worker's two servers: requests of clients, and its own admin port.

Clients are served by aiohttp's low-level server with what it leaves to its user set right: a client that leaves cancels
its handler, bodies stay as encoded as they came, and what its parser refuses is answered with a request id too.

Leaving (`Front.drain`) loses nothing: connections that the kernel has already accepted are taken before the listening
socket closes; every answer from then on ends its connection; idle connections get a moment to send the request that
may be on its way, and are closed then; what is in flight may finish.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong

from gateway import headers
from gateway.listener import BACKLOG
from gateway.proxy import Proxy

log = logging.getLogger("gateway.app")

_IDLE_TIMEOUT_S: Final = 75.0
_MAX_HEADER_BYTES: Final = 16 * 1024
_IDLE_GRACE_S: Final = 1.0
_POLL_S: Final = 0.02


class _ClientConnection(web.RequestHandler):
    """aiohttp's connection, except for how it words what its parser refuses."""

    __slots__ = ()

    @property
    def idle(self) -> bool:
        """Waiting for the next request."""
        return self._waiter is not None and not self._request_in_progress

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages and not isinstance(self._messages[-1][0], RawRequestMessage):
            # The parser gave up, maybe within a body: whoever reads that body would wait for ever.
            if len(self._messages) > 1:
                body = self._messages[-2][1]
            elif self._current_request is not None:
                body = self._current_request.content
            else:
                return
            if not body.is_eof():
                body.set_exception(web.RequestPayloadError("the body is not valid HTTP"))

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun; another cannot be sent")
        manager = self._manager
        assert isinstance(manager, _ClientServer)
        if isinstance(exc, LineTooLong):
            status = 431
        request_id = headers.request_id(request.raw_headers) or manager.proxy.new_id()
        manager.proxy.dispatcher.meter.unroute(status)
        if status >= 500:
            log.error("a request failed within the gateway", exc_info=exc, extra={"request_id": request_id})
        text = "the request is not valid HTTP" if status < 500 else "the gateway failed; its log says more"
        response = web.Response(
            status=status,
            body=json.dumps({"error": text}).encode() + b"\n",
            headers={"X-Request-Id": request_id, "Server": "tangram"},
            content_type="application/json",
        )
        response.force_close()
        return response


class _ClientServer(web.Server):
    def __init__(self, proxy: Proxy) -> None:
        super().__init__(
            proxy.handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=_IDLE_TIMEOUT_S,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            logger=log,
        )
        self.proxy = proxy

    def __call__(self) -> web.RequestHandler:
        return _ClientConnection(self, loop=self._loop, **self._kwargs)


class Front:
    """The server of clients' requests."""

    def __init__(self, proxy: Proxy, listener: socket.socket) -> None:
        self._proxy = proxy
        self._listener = listener
        self._server = _ClientServer(proxy)
        self._listening: asyncio.Server | None = None
        self._hastened = False
        self.port: int = listener.getsockname()[1]

    async def start(self) -> None:
        """Accept connections."""
        # The event loop closes the socket that it is given; the other handle stays, to empty the queue at the end.
        self._listening = await asyncio.get_running_loop().create_server(
            self._server, sock=self._listener.dup(), backlog=BACKLOG
        )

    @property
    def clients(self) -> int:
        """Open connections."""
        return len(self._server.connections)

    async def drain(self, bound_s: float) -> bool:
        """Stop accepting and finish what is in flight; False where that took longer than `bound_s`, or was hastened."""
        end = monotonic() + bound_s
        self._proxy.closing = True
        await self._stop_accepting()
        await self._until_gone(min(end, monotonic() + _IDLE_GRACE_S))
        for connection in self._server.connections:
            if isinstance(connection, _ClientConnection) and connection.idle:
                connection.force_close()
            else:
                connection.close()
        done = await self._until_gone(end)
        await self._server.shutdown(0.2)
        return done

    def hasten(self) -> None:
        """Cut a drain short."""
        self._hastened = True

    async def _stop_accepting(self) -> None:
        if self._listening is not None:
            self._listening.close()
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError as error:
                if error.errno == errno.ECONNABORTED:
                    continue
                break
            accepted.setblocking(False)
            with suppress(OSError):
                await asyncio.get_running_loop().connect_accepted_socket(self._server, accepted)
        with suppress(OSError):
            # For all who hold it: a connection that is queued now would wait for nobody.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    async def _until_gone(self, end: float) -> bool:
        while self.clients:
            if monotonic() >= end or self._hastened:
                return False
            await asyncio.sleep(_POLL_S)
        return True


class Admin:
    """/metrics, /healthz and /readyz of one worker."""

    def __init__(self, *, metrics: Callable[[], bytes], ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._ready = ready
        self._server: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self.port = 0

    async def start(self, host: str) -> None:
        """Listen on a free port. Raises OSError."""
        self._server = web.Server(self._handle, access_log=None, keepalive_timeout=_IDLE_TIMEOUT_S)
        self._listening = await asyncio.get_running_loop().create_server(self._server, host, 0)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.close()
        if self._server is not None:
            await self._server.shutdown(0.2)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path not in ("/metrics", "/healthz", "/readyz"):
            return web.Response(status=404, text="this port serves /metrics, /healthz and /readyz\n")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, text="only GET\n", headers={"Allow": "GET, HEAD"})
        if request.path == "/metrics":
            from gateway.metrics import CONTENT_TYPE

            return web.Response(body=self._metrics(), headers={"Content-Type": CONTENT_TYPE})
        if request.path == "/readyz" and not self._ready():
            return web.Response(status=503, text="not ready\n")
        return web.Response(text="ok\n")
