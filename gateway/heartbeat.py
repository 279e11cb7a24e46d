"""Says to whoever watches this process that its event loop turns: an empty datagram every BEAT_S.

The environment names the socket (HEARTBEAT); without it nobody watches. Nothing is kept or waited for: where nobody
listens at the moment, or the other side is slow, that beat is lost, which says as much as a late one.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

#: Environment variable with the path of the socket.
HEARTBEAT: Final = "TANGRAM_HEARTBEAT"
BEAT_S: Final = 2.0


class Heartbeat:
    """Beats from now on until `close`, as long as the loop turns."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._next: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._path = os.environ.get(HEARTBEAT, "")
        if self._path:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            self._beat()

    def _beat(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(b"", self._path)
            self._next = self._loop.call_later(BEAT_S, self._beat)

    def close(self) -> None:
        """Beat no more."""
        if self._next is not None:
            self._next.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
