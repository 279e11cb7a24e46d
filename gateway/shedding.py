"""When a waiting room takes no more requests: its own bounds and those of all together, over all workers."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.counts import ALL_MODELS
from gateway.leases import Served
from gateway.limits import Limits
from gateway.wire import Settings


def fits(served: Served, waiting: Iterable[Served], settings: Settings, limits: Limits, nbytes: int) -> bool:
    """Whether one more request of `nbytes` keeps to the bounds of its model and of all, over all workers.

    `waiting` are the models that this worker has requests waiting for.
    """
    entry = served.route.entry
    count, size = limits.queued_elsewhere(entry.slot)
    if served.room.full(nbytes, max_requests=entry.queue_max_requests - count, max_bytes=entry.queue_max_bytes - size):
        return False
    count, size = limits.queued_elsewhere(ALL_MODELS)
    for other in waiting:
        count += other.room.count
        size += other.room.nbytes
    return count < settings.queue_max_requests and size + nbytes <= settings.queue_max_bytes
