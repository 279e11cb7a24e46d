"""The dispatcher on a running event loop: its clock, its timer, and the waking of those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from gateway.dispatch import Dispatcher, Effects, Lease, Outcome, Refusal, Served
from gateway.upstream import Pools
from gateway.waiting import Ticket


class Engine:
    """What requests in progress share. `wake` and `report` reach the controller."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        pools: Pools,
        *,
        wake: Callable[[str], None],
        report: Callable[[], None],
    ) -> None:
        self.dispatcher = dispatcher
        self.pools = pools
        self._wake = wake
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._ticker: asyncio.TimerHandle | None = None

    async def admit(
        self, served: Served, *, nbytes: int, gives_up: float, entered: float | None, wakes: bool
    ) -> Lease | Refusal:
        """`Dispatcher.admit`, and the wait where it gives a ticket; a caller that is cancelled leaves the queue."""
        dispatcher = self.dispatcher
        place = dispatcher.admit(served, monotonic(), nbytes=nbytes, gives_up=gives_up, entered=entered, wakes=wakes)
        if isinstance(place, Lease):
            return place
        if wakes and (name := dispatcher.wake(served)) is not None:
            self._wake(name)
        if isinstance(place, Refusal):
            return place
        future: asyncio.Future[Lease | Refusal] = self._loop.create_future()
        place.owner = future
        self._expect_tick()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                granted = future.result()
                if isinstance(granted, Lease):
                    self.release(granted, Outcome.ABANDONED)
            else:
                dispatcher.cancel(served, place, monotonic())
            raise

    def carry_out(self, effects: Effects) -> None:
        """Wake those whom a change concerns."""
        for ticket, lease in effects.granted:
            self._resolve(ticket, lease)
        for ticket, refusal in effects.refused:
            self._resolve(ticket, refusal)
        for name in effects.wakes:
            self._wake(name)
        if effects.report:
            self._report()
        self._expect_tick()

    def _resolve(self, ticket: Ticket, result: Lease | Refusal) -> None:
        future = ticket.owner
        assert isinstance(future, asyncio.Future)
        if not future.done():
            future.set_result(result)
        elif isinstance(result, Lease):
            self.release(result, Outcome.ABANDONED)

    def release(self, lease: Lease, outcome: Outcome) -> None:
        """Give back a lease, and wake whom that helps."""
        self.carry_out(self.dispatcher.release(lease, outcome, monotonic()))

    def _expect_tick(self) -> None:
        due = self.dispatcher.next_tick(monotonic())
        if self._ticker is not None:
            if due is not None and self._ticker.when() <= due:
                return
            self._ticker.cancel()
            self._ticker = None
        if due is not None:
            self._ticker = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        self.carry_out(self.dispatcher.tick(monotonic()))

    def close(self) -> None:
        """Stop the clock."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
