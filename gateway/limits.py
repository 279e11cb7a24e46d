"""Limits that hold over all workers of a gateway: requests in flight, requests a second, and requests that wait.

`Limits.acquire` and `Limits.release` are the only places where a count of requests in flight changes. A worker that is
alone keeps its counts to itself. Several share memory (`gateway.counts`), each with a row of its own:

Concurrency holds exactly, however small the limit. A worker adds itself first, then looks at the others, and takes
itself off again when the sum is over the limit. Of two workers that race for the last place both may step back, but
never do both go in; the one that waits tries again when its waiting room is next looked at. Far from the limit that
takes no fence (`Counts.blur`).

A `Bucket` is looked at before it is written to: of n workers that take its last token in the same microsecond all get
one, so a burst may be n - 1 requests larger, which are paid back. Who takes a token has looked at what the others know
of the bucket before, so the one that took last knows all, and the latest time to be full again is the true one. Few
tokens of many that others have taken since are counted as taken at this moment, the latest there can be: no worker
then counts a bucket as less full than it is by more than a 128th.

Bounds of waiting rooms are looked at before they are written to as well, and may be passed by n - 1 requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from gateway.counts import ALL_MODELS, COLUMNS, QUEUED, QUEUED_BYTES, Counts

#: Tokens of a bucket, as a part of it, whose time does not matter.
_FEW: Final = 1 / 128


class Limited:
    """What has a limit of requests in flight."""

    __slots__ = ("concurrency", "in_flight", "slot")

    def __init__(self, slot: int, concurrency: int) -> None:
        """`concurrency` is the limit, over all workers; 0: none."""
        self.slot = slot
        self.concurrency = concurrency
        self.in_flight = 0
        """From this worker; changed by `Limits` only."""


class Bucket:
    """A token bucket of `burst` tokens that fills at `rate` a second, over all workers.

    As GCRA (ITU-T I.371): one number, the time at which it would be full again.
    """

    __slots__ = ("_column", "_counts", "_depth", "_few", "_full_at", "_seen", "_step", "burst", "rate")

    def __init__(self, rate: float, burst: float, counts: Counts | None = None, slot: int = 0) -> None:
        self.rate = rate
        self.burst = burst
        self._step = 1 / rate
        self._depth = burst / rate + 1e-9
        self._few = int(burst * _FEW)
        """So many tokens that others took are taken as if they had been so just now."""
        self._full_at = -math.inf
        self._counts = counts
        self.take_slot(slot)

    def take_slot(self, slot: int) -> None:
        """Share what is counted under this slot from now on; what was taken so far stays taken."""
        self._column = slot % COLUMNS
        self._seen = -1
        """What others had taken when last looked at; below 0 before that."""

    def wait_s(self, now: float) -> float:
        """Seconds until a token is there; 0 where one is."""
        counts = self._counts
        if counts is not None:
            spent = counts.spent_elsewhere(self._column)
            if spent != self._seen:
                self._learn(counts, spent, now)
        full_at = self._full_at
        wait = (full_at if full_at > now else now) + self._step - now - self._depth
        return wait if wait > 0 else 0.0

    def _learn(self, counts: Counts, spent: int, now: float) -> None:
        new = 0 if self._seen < 0 else spent - self._seen
        self._seen = spent
        full_at = self._full_at
        if 0 < new <= self._few:
            self._full_at = (full_at if full_at > now else now) + new * self._step
            return
        # A slot may have been that of another limit a moment ago: no bucket is further from full than empty.
        known = min(counts.full_at_ns(self._column) / 1e9, now + self.burst / self.rate)
        # Tokens that were taken at the same time as one of ours are not in what the others knew.
        self._full_at = max(known, full_at + new / self.rate)

    def take(self, now: float) -> None:
        """Take a token."""
        full_at = self._full_at
        self._full_at = (full_at if full_at > now else now) + self._step
        if self._counts is not None:
            self._counts.spend(self._column, int(self._full_at * 1e9))


@dataclass
class Queue:
    """What the other workers were told of a waiting room of this one."""

    slot: int = 0
    count: int = 0
    nbytes: int = 0


class Limits:
    """Places in flight and in waiting rooms, as one worker sees them; `counts` is None where there is one worker."""

    def __init__(self, counts: Counts | None = None) -> None:
        self.shared = counts is not None
        self._counts = counts

    # --- in flight ---

    def acquire(self, endpoint: Limited) -> bool:
        """Take a place in flight; False where the limit leaves none."""
        limit, counts = endpoint.concurrency, self._counts
        if counts is None:
            if limit and endpoint.in_flight >= limit:
                return False
        else:
            column = endpoint.slot % COLUMNS
            held = counts.hold(column, 1)
            if limit and held + counts.held_elsewhere(column) + counts.blur > limit:
                counts.fence()
                if held + counts.held_elsewhere(column) > limit:
                    counts.hold(column, -1)
                    return False
        endpoint.in_flight += 1
        return True

    def release(self, endpoint: Limited) -> None:
        """Give back a place that `acquire` gave."""
        if endpoint.in_flight <= 0:
            raise ValueError("released more often than acquired")
        endpoint.in_flight -= 1
        if self._counts is not None:
            self._counts.hold(endpoint.slot % COLUMNS, -1)

    def move(self, endpoint: Limited, old_slot: int) -> None:
        """The endpoint was given another slot while requests were in flight to it."""
        if self._counts is not None:
            self._counts.hold(old_slot % COLUMNS, -endpoint.in_flight)
            self._counts.hold(endpoint.slot % COLUMNS, endpoint.in_flight)

    def load(self, endpoint: Limited) -> int:
        """Requests in flight to the endpoint from all workers; from a new one, soon."""
        if self._counts is None:
            return endpoint.in_flight
        return endpoint.in_flight + self._counts.held_by_known(endpoint.slot % COLUMNS)

    def has_room(self, endpoint: Limited) -> bool:
        """Whether `acquire` would succeed at this moment."""
        if not endpoint.concurrency:
            return True
        elsewhere = 0 if self._counts is None else self._counts.held_elsewhere(endpoint.slot % COLUMNS)
        return endpoint.in_flight + elsewhere < endpoint.concurrency

    # --- requests a second ---

    def bucket(self, rate: float, burst: float, slot: int) -> Bucket:
        """A full bucket."""
        return Bucket(rate, burst, self._counts, slot)

    # --- waiting ---

    def tell(self, queue: Queue, slot: int, count: int, nbytes: int) -> None:
        """This worker's waiting room of the model with this slot now holds so much."""
        counts = self._counts
        if counts is None:
            return
        for kind, old, new in ((QUEUED, queue.count, count), (QUEUED_BYTES, queue.nbytes, nbytes)):
            if queue.slot == slot:
                counts.add(kind + slot % COLUMNS, new - old)
            else:
                counts.add(kind + queue.slot % COLUMNS, -old)
                counts.add(kind + slot % COLUMNS, new)
            counts.add(kind + ALL_MODELS, new - old)
        queue.slot, queue.count, queue.nbytes = slot, count, nbytes

    def queued_elsewhere(self, slot: int) -> tuple[int, int]:
        """(requests, bytes) in the other workers' waiting rooms of the model with this slot."""
        if self._counts is None:
            return 0, 0
        column = slot % COLUMNS
        return self._counts.others(QUEUED + column), self._counts.others(QUEUED_BYTES + column)
