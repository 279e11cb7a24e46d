"""How the supervisor notices that a process of ours lives and does nothing (a blocked event loop, a SIGSTOP).

The processes send a datagram every `BEAT_S` (see `gateway.heartbeat`); the kernel says from whom it is. `Silence` adds
up how long nothing came, by the supervisor's own looks, each of which counts for at most LOOK_S. So a pause of the
supervisor, or of the whole machine, counts as one look however long it was: whoever was paused too, or beat meanwhile,
has time to be heard before it is judged.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path
from typing import Final

from gateway.heartbeat import BEAT_S

#: Most seconds of silence that one look adds.
LOOK_S: Final = BEAT_S
#: Seconds in which a process that was just started must be heard first.
START_S: Final = 120.0

_CREDENTIALS: Final = struct.Struct("iII")
"""struct ucred: process, user, group."""


class Silence:
    """Of one process; `bound_s` is how much of it is borne once it has been heard."""

    def __init__(self, bound_s: float, now: float, *, new: bool) -> None:
        self._bound_s = bound_s
        self._limit_s = START_S if new else bound_s
        self._silent_s = 0.0
        self._looked = now

    def heard(self) -> None:
        """It beat."""
        self._silent_s = 0.0
        self._limit_s = self._bound_s

    def broken(self, now: float) -> float | None:
        """Look: None while all is well, else for how many seconds nothing was heard; the count begins anew then."""
        self._silent_s += min(max(0.0, now - self._looked), LOOK_S)
        self._looked = now
        if self._silent_s < self._limit_s:
            return None
        silent_s, self._silent_s = self._silent_s, 0.0
        return silent_s


class Listener:
    """Where the processes beat. Raises OSError where the socket cannot be made."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = self._bound()
        self._inode = path.stat().st_ino

    def _bound(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            made.bind(str(self._path))
            self._path.chmod(0o600)
        except OSError:
            made.close()
            raise
        return made

    def reachable(self) -> bool:
        """Whether the processes can beat: where somebody removed the socket, it is made again, and nobody judged."""
        try:
            if self._path.stat().st_ino == self._inode:
                return True
        except OSError:
            pass
        with contextlib.suppress(OSError):
            made = self._bound()
            self._socket.close()
            self._socket, self._inode = made, self._path.stat().st_ino
        return False

    def fileno(self) -> int:
        """To poll for."""
        return self._socket.fileno()

    def heard(self) -> set[int]:
        """Ids of the processes that beat since the last call."""
        pids = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                _, messages, _, _ = self._socket.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
                for level, kind, data in messages:
                    if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                        pid, user, _ = _CREDENTIALS.unpack(data)
                        if user == os.geteuid():
                            pids.add(pid)
        return pids

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
        with contextlib.suppress(OSError):
            self._path.unlink()
