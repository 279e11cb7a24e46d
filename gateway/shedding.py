"""When a request may not wait, or no longer: the bounds of waiting rooms, over all workers, and what is then said."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.counts import ALL_MODELS
from gateway.leases import Served
from gateway.limits import Limits
from gateway.refusal import Refusal
from gateway.retry_after import UNKNOWN_S, retry_after_s
from gateway.waiting import Ticket
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


def hopeless(served: Served, now: float, *, wakes: bool) -> Refusal | None:
    """Why no wait would help; None where it may."""
    entry = served.route.entry
    if served.removed:
        return Refusal(404, "unknown", f"model {entry.name!r} was removed")
    if served.route.usable:
        return None
    if entry.max_replicas == 0:
        return Refusal(503, "no_replicas", f"model {entry.name!r} is set to no replicas", UNKNOWN_S * 12)
    if entry.unavailable is not None:
        message = f"model {entry.name!r} has no replica at present: {entry.unavailable}"
        return Refusal(503, "unavailable", message, retry_after_s(served, now))
    if not wakes:
        message = f"model {entry.name!r} has no replica at present, and this request does not start one"
        return Refusal(503, "asleep", message, retry_after_s(served, now))
    return None


def overflow(served: Served, now: float) -> Refusal:
    """What is said to a request for which the room has no place."""
    name = served.meter.name
    if served.route.usable:
        message = f"model {name!r} is busy and its queue is full"
        return Refusal(429, "queue_full", message, retry_after_s(served, now))
    message = f"model {name!r} has no replica yet and its queue is full"
    return Refusal(503, "queue_full", message, retry_after_s(served, now))


def expired(served: Served, ticket: Ticket, now: float) -> Refusal:
    """What is said to a request whose wait is over."""
    entry = served.route.entry
    waited = now - ticket.entered
    if ticket.deadline < ticket.entered + entry.queue_max_s:
        return Refusal(504, "timeout", f"model {entry.name!r} gave no answer in time; {waited:.1f} s in the queue")
    message = f"model {entry.name!r} had no place for this request within {waited:.1f} s"
    return Refusal(503, "queue_timeout", message, retry_after_s(served, now))
