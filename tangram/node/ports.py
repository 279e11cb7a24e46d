"""Ports for Instances on this machine.

They are taken from below the range that the system uses for outgoing connections: the gateway opens many of those,
and one of them could otherwise sit on a port between its choice and the Instance's listening on it. The choice goes
round the range, so that a port is not given to another Instance soon after its last user has gone: a gateway worker
without a controller may still know it.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tangram.node.backend import StartError

_LOWEST: Final = 20000
_HIGHEST: Final = 32767
_OUTGOING: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


class PortAllocator:
    """Gives each port once until it is released. `start` is where it begins; by default anywhere in the range."""

    def __init__(self, host: str = "127.0.0.1", *, start: int | None = None) -> None:
        self._any = "::" if ":" in host else "0.0.0.0"
        highest = _HIGHEST
        try:
            outgoing = int(_OUTGOING.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            outgoing = _HIGHEST + 1
        if outgoing > _LOWEST + 1000:
            highest = min(highest, outgoing - 1)
        self._range = range(_LOWEST, highest + 1)
        self._next = start if start is not None else random.choice(self._range)
        self._given: set[int] = set()

    def allocate(self) -> int:
        """A port that is free now and was not given before; StartError where there is none."""
        for offset in range(len(self._range)):
            port = self._range[(self._next - self._range.start + offset) % len(self._range)]
            if port not in self._given and self._is_free(port):
                self._next = port + 1
                self._given.add(port)
                return port
        raise StartError(f"no port from {self._range.start} to {self._range[-1]} is free; stop what uses them")

    def reserve(self, ports: Iterable[int]) -> None:
        """Never give these, as they are in use by Instances already."""
        self._given.update(ports)

    def release(self, port: int) -> None:
        """The Instance with this port is gone."""
        self._given.discard(port)

    def _is_free(self, port: int) -> bool:
        # On all addresses, since an Instance may listen on all; without SO_REUSEADDR, since it may not set it either.
        with socket.socket(socket.AF_INET6 if ":" in self._any else socket.AF_INET) as listener:
            try:
                listener.bind((self._any, port))
            except OSError:
                return False
            return True
