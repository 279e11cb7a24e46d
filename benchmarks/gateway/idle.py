"""Memory of a proxy at rest, and with clients that have asked once and keep their connections."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from benchmarks.gateway.load import Generators
from benchmarks.gateway.peers import Proxy
from benchmarks.gateway.programs import Failed
from benchmarks.gateway.traffic import INFER

CONNECTIONS: Final = 2000
_TOGETHER: Final = 50
_WARM_REQUESTS: Final = 200
_TIMEOUT_S: Final = 20.0


def measure(proxy: Proxy, load: Generators) -> Mapping[str, float]:
    """`rest_mb` (10^6 bytes of PSS before any request), `warm_mb` (after some), `connection_kib` (beyond that)."""
    rest = proxy.memory()
    load.count(proxy, INFER, connections=_TOGETHER, requests=_WARM_REQUESTS)
    warm, before = proxy.memory(), proxy.own_memory()
    held: list[socket.socket] = []
    try:
        for _ in range(CONNECTIONS // _TOGETHER):
            group = [socket.create_connection(("127.0.0.1", proxy.port), _TIMEOUT_S) for _ in range(_TOGETHER)]
            held += group
            for one in group:
                one.sendall(INFER.raw)
            for one in group:
                _read(one, proxy.name)
        after = proxy.own_memory()
    finally:
        for one in held:
            one.close()
    return {
        "rest_mb": rest / 1e6,
        "warm_mb": warm / 1e6,
        "connection_kib": (after - before) / CONNECTIONS / 1024,
    }


def _read(connection: socket.socket, name: str) -> None:
    """One answer, which has a length."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += _more(connection, name)
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not head.startswith(b"HTTP/1.1 200 ") or not lengths:
        raise Failed(f"{name} answered {head[:100]!r}")
    left = int(lengths[0].partition(b":")[2]) - len(body)
    while left > 0:
        left -= len(_more(connection, name))


def _more(connection: socket.socket, name: str) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise Failed(f"{name} ended a connection that was to be kept")
    return part
