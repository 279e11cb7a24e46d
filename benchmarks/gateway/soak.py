"""Growth of our memory between the 100,000th and the millionth request, with 10,000 clients that leave in between.

Those leave at three stages in turn: within the head, within the body, and within the answer (a stream that is flowing).
They come in 90 bursts between runs of ordinary load. Memory is read after the last of them is gone.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Final

from benchmarks.gateway.load import Generators
from benchmarks.gateway.peers import Proxy
from benchmarks.gateway.traffic import INFER, STREAM
from benchmarks.local import wait_until

FIRST: Final = 100_000
LAST: Final = 1_000_000
LEAVING: Final = 10_000
_CONNECTIONS: Final = 64
_PART: Final = 10_000
_SETTLE_S: Final = 20.0


def measure(proxy: Proxy, load: Generators) -> tuple[Mapping[str, float], int]:
    """(`growth_mb`, `first_mb`, `last_mb`: 10^6 bytes of PSS that maps no file; how many requests failed)."""
    failed = 0
    for _ in range(FIRST // _PART):
        failed += _part(proxy, load)
    # The first of each kind that leaves may fill a cache; that is no growth.
    _leave(proxy, range(300))
    first = _settled(proxy)
    parts = (LAST - FIRST) // _PART
    for part in range(parts):
        _leave(proxy, range(LEAVING * part // parts, LEAVING * (part + 1) // parts))
        failed += _part(proxy, load)
    last = _settled(proxy)
    return {"growth_mb": (last - first) / 1e6, "first_mb": first / 1e6, "last_mb": last / 1e6}, failed


def _part(proxy: Proxy, load: Generators) -> int:
    return load.count(proxy, INFER, connections=_CONNECTIONS, requests=_PART).failed


def _leave(proxy: Proxy, numbers: range) -> None:
    for number in numbers:
        with socket.create_connection(("127.0.0.1", proxy.port), 20.0) as client:
            if number % 3 == 0:
                client.sendall(INFER.raw[:100])
            elif number % 3 == 1:
                client.sendall(INFER.raw[:-500])
            else:
                client.sendall(STREAM.raw)
                client.recv(1)
            if number % 2:
                # Half of them with a reset.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _settled(proxy: Proxy) -> int:
    """It, once it stays the same for two looks in a row, or after a bound."""
    seen: list[int] = []

    def same() -> bool:
        seen.append(proxy.own_memory())
        return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

    wait_until(same, _SETTLE_S, 1.0)
    return seen[-1]
