"""Shadow traffic: copies of requests to another model, whose answers nobody sees.

A copy is sent once the client has its answer, so it cannot delay or change it. It takes only a place that is free at
that moment, waits in no queue, is never repeated, and is dropped where too many are on their way already or the body
was too large to be kept.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from time import monotonic
from typing import Final

import h11

from gateway import headers
from gateway.engine import Engine
from gateway.leases import Lease, Outcome, Served
from gateway.meter import Ending
from gateway.upstream import Broken, Connection, TimedOut, Unreachable

log = logging.getLogger("gateway.mirror")

#: Copies on their way at a time.
MAX_IN_FLIGHT: Final = 32


@dataclass(frozen=True, slots=True)
class Copy:
    """A request as it is sent again."""

    method: str
    target: str
    fields: headers.Fields
    """As the client sent them, but for its key."""
    body: bytes
    model: str
    """The one that was asked for."""
    client: str
    scheme: str
    request_id: str


class Mirror:
    """Sends copies."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sending: set[asyncio.Task[None]] = set()

    def drop(self, to: str) -> None:
        """A copy cannot be made: the body was too large to be kept, or the answer came before all of it."""
        served = self._engine.dispatcher.find(to)
        if served is not None:
            served.meter.arrivals += 1
            served.meter.finish(Ending.REFUSED, 503, 0.0, "mirror_dropped")

    def send(self, copy: Copy, to: str) -> None:
        """Send a copy to a model, if that can be done at once."""
        dispatcher = self._engine.dispatcher
        served = dispatcher.find(to)
        if served is None:
            return
        served.meter.arrivals += 1
        lease = dispatcher.lease_now(served, monotonic()) if len(self._sending) < MAX_IN_FLIGHT else None
        if lease is None:
            served.meter.finish(Ending.REFUSED, 503, 0.0, "mirror_dropped")
            self._engine.wake_for(served)
            return
        task = asyncio.get_running_loop().create_task(self._send(copy, served, lease))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, copy: Copy, served: Served, lease: Lease) -> None:
        outcome, code, began = Outcome.ABANDONED, 502, monotonic()
        connection: Connection | None = None
        try:
            endpoint = lease.endpoint
            connection = await self._engine.pools.get(endpoint.id, endpoint.host, endpoint.port).connect()
            connection.deadline = monotonic() + served.route.entry.timeout_s
            request = h11.Request(method=copy.method, target=copy.target, headers=self._fields(copy, lease))
            data = (h11.Data(data=copy.body),) if copy.body else ()
            connection.send(request, *data, h11.EndOfMessage())
            self._engine.dispatcher.sent(lease, monotonic())
            while not isinstance(event := await connection.receive(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    code = event.status_code
                    self._engine.dispatcher.answering(lease, monotonic())
                connection.deadline = monotonic() + served.route.entry.timeout_s
            outcome = Outcome.ERROR if code >= 500 else Outcome.ANSWERED
        except Unreachable:
            outcome = Outcome.UNREACHABLE
        except Broken:
            outcome = Outcome.BROKEN
        except TimedOut:
            outcome, code = Outcome.TIMED_OUT, 504
        except h11.LocalProtocolError as error:
            log.info("a request to %s cannot be mirrored: %s", served.meter.name, error)
        finally:
            if connection is not None:
                connection.close()
            self._engine.release(lease, outcome)
            whole = outcome in (Outcome.ANSWERED, Outcome.ERROR)
            served.meter.finish(Ending.COMPLETED if whole else Ending.FAILED, code, monotonic() - began)

    @staticmethod
    def _fields(copy: Copy, lease: Lease) -> headers.Fields:
        fields = headers.upward(
            [field for field in copy.fields if field[0].lower() != b"x-mirrored-from"],
            host=f"{lease.endpoint.host}:{lease.endpoint.port}".encode(),
            client=copy.client,
            scheme=copy.scheme,
            request_id=copy.request_id,
            length=len(copy.body) if copy.body or copy.method == "POST" else None,
            chunked=False,
        )
        return [*fields, (b"X-Mirrored-From", copy.model.encode("ascii", "replace"))]
