"""Listening sockets of a gateway. Standard library only: who holds one for a worker need not import the gateway.

A worker may inherit its listening socket instead of making it: LISTEN_FD in its environment then names the descriptor.
While the worker is dead and its successor starts, connections wait in the socket's queue instead of being refused.
"""

from __future__ import annotations

import os
import socket
from typing import Final

#: Environment variable with the descriptor of an inherited listening socket.
LISTEN_FD: Final = "TANGRAM_LISTEN_FD"
BACKLOG: Final = 2048


def listening_socket(host: str, port: int, *, shared: bool = True) -> socket.socket:
    """A listening socket, on a port that other workers may share if it is `shared`. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


def inherited_socket() -> socket.socket | None:
    """The listening socket that this process was started with, if it was. Raises OSError where it is none."""
    descriptor = os.environ.get(LISTEN_FD, "")
    if not descriptor.isdecimal():
        return None
    found = socket.socket(fileno=int(descriptor))
    found.setblocking(False)
    found.set_inheritable(False)
    return found


def is_listening(held: socket.socket) -> bool:
    """Whether connections are still taken in; a worker that leaves ends that for all who hold its socket."""
    return bool(held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT" or "[HOST]:PORT". Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address; write HOST:PORT, for example 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)
