"""The worker's two servers: requests of clients, and its own admin port.

Leaving (`Front.drain`) loses nothing: connections that the kernel has already accepted are taken before the listening
socket closes; every answer from then on ends its connection; idle connections get a moment to send the request that
may be on its way, and are closed then; what is in flight may finish.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from aiohttp import web

from gateway.clients import ClientConnection, ClientServer
from gateway.fastpath import FastConnection
from gateway.listener import BACKLOG, listening_socket
from gateway.proxy import Proxy
from gateway.relays import FastPath

_ADMIN_IDLE_S: Final = 75.0
_IDLE_GRACE_S: Final = 1.0
_POLL_S: Final = 0.02


class FastServer(ClientServer):
    """Makes a `FastConnection` for each that is accepted."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(proxy)
        self._fast = FastPath(proxy)

    def _connection(self) -> FastConnection:
        return FastConnection(self, self._fast, loop=self._loop, **self._kwargs)


class Front:
    """The server of clients' requests."""

    def __init__(
        self,
        proxy: Proxy,
        listener: socket.socket,
        tls: ssl.SSLContext | None = None,
        *,
        siblings: bool = False,
        fast: bool = True,
    ) -> None:
        """`siblings` says whether other workers take connections on the same port, `fast` whether plain requests take
        the fast path.
        """
        self._proxy = proxy
        self._siblings = siblings
        self._tls = tls
        self._listener = listener
        self._server = FastServer(proxy) if fast else ClientServer(proxy)
        self._listening: asyncio.Server | None = None
        self._hastened = False
        self.port: int = listener.getsockname()[1]

    async def start(self) -> None:
        """Accept connections."""
        # The event loop closes the socket that it is given; the other handle stays, to empty the queue at the end.
        self._listening = await asyncio.get_running_loop().create_server(
            self._server, sock=self._listener.dup(), backlog=BACKLOG, ssl=self._tls
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
            if isinstance(connection, ClientConnection) and connection.idle:
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
                await asyncio.get_running_loop().connect_accepted_socket(self._server, accepted, ssl=self._tls)
        if self._siblings:
            with suppress(OSError):
                # For all who hold it: new connections go to the other workers at once. A worker that is alone leaves
                # the socket to who holds it, so that they wait for its successor.
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
        self._server = web.Server(self._handle, access_log=None, keepalive_timeout=_ADMIN_IDLE_S)
        self._listening = await asyncio.get_running_loop().create_server(
            self._server, sock=listening_socket(host, 0, shared=False)
        )
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
