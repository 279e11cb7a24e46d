"""Readiness: one HTTP GET on a connection of its own, and when to ask again.

The probe is its own few lines on asyncio's transport, since a client session per probe would cost more than all else
an idle controller does. It looks at the status line only. 2xx is ready.

While an Instance starts it is asked soon and often, so that little is added to its own start: at first after 30 ms,
then every 50 ms or twentieth of its age, but at least four times a second; after 30 s, and while it is ready, at its
readiness period. Those regular probes fall on multiples of the period, so that the ones of many Instances come together
and an idle controller is woken once for all.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

_FIRST_S: Final = 0.03
_FASTEST_S: Final = 0.05
_SLOWEST_S: Final = 0.25
_PATIENCE_S: Final = 30.0
#: The answer's body is read and dropped for this long before the connection is closed under the server.
_LINGER_S: Final = 1.0
_MAX_STATUS_LINE: Final = 1024


class Failure(NamedTuple):
    """Why an Instance is not ready."""

    text: str
    answered: bool
    """Whether it said anything at all: then its process turns."""


def next_delay(age_s: float | None, period_s: float, now: float, *, ready: bool) -> float:
    """Seconds until the next probe of an Instance watched for age_s (None before its first probe).

    At the readiness period it is the multiple of the period (by the clock of `now`) that is half a period to one and a
    half away.
    """
    if ready or (age_s is not None and age_s > _PATIENCE_S):
        delay = period_s - now % period_s
        return delay if delay >= period_s / 2 else delay + period_s
    if age_s is None:
        return min(_FIRST_S, period_s)
    return min(max(_FASTEST_S, age_s / 20), _SLOWEST_S, period_s)


async def probe(host: str, port: int, path: str, timeout_s: float) -> Failure | None:
    """Ask once; None when ready, else why not."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Failure | None] = loop.create_future()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.create_connection(lambda: _Get(answer, host, port, path), host, port)
            return await answer
    except TimeoutError:
        return Failure(f"GET {path} on port {port}: no answer within {timeout_s:g} s", answered=False)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, ConnectionRefusedError):
            reason = "connection refused"
        return Failure(f"GET {path} on port {port}: {reason}", answered=False)


class _Get(asyncio.Protocol):
    def __init__(self, answer: asyncio.Future[Failure | None], host: str, port: int, path: str) -> None:
        self._answer = answer
        self._what = f"GET {path} on port {port}"
        authority = f"[{host}]" if ":" in host else host
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {authority}:{port}\r\nUser-Agent: tangram-probe\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode()
        self._head = b""
        self._linger: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)
        self._answer.add_done_callback(self._answered)

    def data_received(self, data: bytes) -> None:
        if self._answer.done():
            return
        self._head += data
        line, end, _ = self._head.partition(b"\n")
        if not end and len(line) < _MAX_STATUS_LINE:
            return
        version, _, rest = line.partition(b" ")
        status = rest[:3]
        if not version.startswith(b"HTTP/1.") or len(status) < 3 or not status.isdigit():
            self._answer.set_result(Failure(f"{self._what}: the answer is not HTTP", answered=True))
        elif status.startswith(b"2"):
            self._answer.set_result(None)
        else:
            self._answer.set_result(Failure(f"{self._what}: status {status.decode()}", answered=True))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._linger is not None:
            self._linger.cancel()
        if not self._answer.done():
            self._answer.set_result(Failure(f"{self._what}: connection closed without an answer", answered=False))

    def _answered(self, answer: asyncio.Future[Failure | None]) -> None:
        assert self._transport is not None
        if answer.cancelled():
            self._transport.abort()
        else:
            self._linger = asyncio.get_running_loop().call_later(_LINGER_S, self._transport.close)
