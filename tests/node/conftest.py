"""Real processes for the backend to look after: small, quick to start, and ended with the test."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tangram.node import processes
from tangram.node.backend import StartOrder
from tangram.node.local import LocalBackend

#: Answers 200 on /ready while the file named by argv[2] is not there, 503 while it is.
SERVER = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    request = connection.recv(4096)
    sick = len(sys.argv) > 2 and os.path.exists(sys.argv[2])
    path = request.split()[1] if request else b""
    status = b"503 Sick" if sick else b"200 OK" if path == b"/ready" else b"404 Not Found"
    connection.sendall(b"HTTP/1.1 " + status + b"\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
    connection.close()
"""


class Changes:
    """What on_change was called with, and a way to wait for a state of things that a change brings."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._event = asyncio.Event()

    def __call__(self, instance: str) -> None:
        self.seen.append(instance)
        self._event.set()

    async def until(self, condition: Callable[[], object], within_s: float = 10.0) -> float:
        """Wait for changes until the condition holds; the seconds it took."""
        began = time.monotonic()
        async with asyncio.timeout(within_s):
            while not condition():
                self._event.clear()
                await self._event.wait()
        return time.monotonic() - began


async def _until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Wait for something that nobody announces."""
    return _until


@pytest.fixture
def running() -> Callable[[int], bool]:
    """Whether a process still runs (one that is dead and not yet reaped does not)."""

    def check(pid: int) -> bool:
        stat = processes.read_stat(pid)
        return stat is not None and not stat.dead

    return check


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "state"
    folder.mkdir()
    yield folder
    processes.end_processes(processes.find_processes(folder), grace_s=0.0)
    # Children of dropped backends: nobody else waits for them.
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG):
            pass
    except ChildProcessError:
        pass


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
async def backend(state: Path, changes: Changes) -> AsyncIterator[LocalBackend]:
    made = LocalBackend(state, changes)
    yield made
    await made.stop_all(0.0)
    await made.close()


@pytest.fixture
def order_of() -> Callable[..., StartOrder]:
    """An order for a Python program, by default the server above; its first argument is the port."""

    def make(
        instance: str = "digits-a",
        code: str = SERVER,
        *,
        arguments: Sequence[object] = (),
        port: int = 0,
        env: Mapping[str, str] | None = None,
        **settings: object,
    ) -> StartOrder:
        argv = (sys.executable, "-I", "-S", "-c", code, str(port), *map(str, arguments))
        settings = {"readiness_path": "/ready", "readiness_period_s": 0.05} | settings
        return StartOrder(instance, "digits", "0a1b2c3d", argv, env or {}, port, **settings)

    return make
