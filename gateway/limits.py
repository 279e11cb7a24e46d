"""Concurrency limits: how many requests may be in flight to an endpoint, over all workers of a gateway.

`Limits.acquire` and `Limits.release` are the only places where an endpoint's in-flight count changes.

One worker alone counts on the endpoint. Several workers share an array of unsigned 32-bit cells, one row a worker and
one column a slot. Each writes only to its own row and reads all: it adds itself first, then sums the column, and takes
itself off again when the sum is over the limit. Of two workers that race for the last place both may step back, but
never do both go in, so a limit smaller than the number of workers holds exactly. The one that stepped back tries again
when its waiting room is next looked at.

A worker zeroes its row at start: what its predecessor had in flight ended with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

#: Slots of a row. Endpoints whose slots are equal modulo this share a cell: the limit holds, at worst too early.
COLUMNS: Final = 4096
_CELL_BYTES: Final = 4


class Limited(Protocol):
    """What a limit needs to know of an endpoint."""

    slot: int
    concurrency: int
    in_flight: int


def size(workers: int) -> int:
    """Bytes of shared memory for that many workers."""
    return workers * COLUMNS * _CELL_BYTES


def _no_fence() -> None:
    return


class Limits:
    """In-flight slots of all endpoints, as one worker sees them.

    `memory` is `size(workers)` bytes that all workers map, or None where there is one worker. `fence` must order the
    stores before it before the loads after it, as other processors see them.
    """

    def __init__(
        self,
        memory: memoryview | None = None,
        *,
        index: int = 0,
        workers: int = 1,
        fence: Callable[[], None] = _no_fence,
    ) -> None:
        self.shared = memory is not None
        self._rows: list[memoryview] = []
        self._fence = fence
        if memory is not None:
            if not 0 <= index < workers:
                raise ValueError(f"index {index} is not that of one of {workers} workers; give 0 to {workers - 1}")
            if len(memory) < size(workers):
                raise ValueError(f"shared memory has {len(memory)} bytes; {workers} workers need {size(workers)}")
            row = COLUMNS * _CELL_BYTES
            self._rows = [memory[n * row : (n + 1) * row].cast("I") for n in range(workers)]
            self._own = self._rows[index]
            for column in range(COLUMNS):
                self._own[column] = 0

    def acquire(self, endpoint: Limited) -> bool:
        """Take a place in flight; False where the limit leaves none."""
        limit = endpoint.concurrency
        if not self.shared:
            if limit and endpoint.in_flight >= limit:
                return False
        else:
            column = endpoint.slot % COLUMNS
            self._own[column] += 1
            if limit:
                self._fence()
                if sum(row[column] for row in self._rows) > limit:
                    self._own[column] -= 1
                    return False
        endpoint.in_flight += 1
        return True

    def release(self, endpoint: Limited) -> None:
        """Give back a place that `acquire` gave."""
        if endpoint.in_flight <= 0:
            raise ValueError("released more often than acquired")
        endpoint.in_flight -= 1
        if self.shared:
            self._own[endpoint.slot % COLUMNS] -= 1

    def move(self, endpoint: Limited, old_slot: int) -> None:
        """The endpoint was given another slot while requests were in flight to it."""
        if self.shared:
            self._own[old_slot % COLUMNS] -= endpoint.in_flight
            self._own[endpoint.slot % COLUMNS] += endpoint.in_flight

    def load(self, endpoint: Limited) -> int:
        """Requests in flight to the endpoint from all workers, now."""
        if not self.shared:
            return endpoint.in_flight
        column = endpoint.slot % COLUMNS
        return sum(row[column] for row in self._rows)

    def has_room(self, endpoint: Limited) -> bool:
        """Whether `acquire` would succeed at this moment."""
        return not endpoint.concurrency or self.load(endpoint) < endpoint.concurrency
