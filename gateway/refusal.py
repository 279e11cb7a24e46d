"""What a request gets that the gateway answers itself because it will not pass it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Refusal:
    """A request that is answered by the gateway itself."""

    status: int
    reason: str
    """A word of a fixed set: queue_full, queue_timeout, no_replicas, unavailable, asleep, timeout, unknown,
    unauthorized, forbidden, rate_limit, concurrency_limit."""
    message: str
    retry_after_s: int | None = None
