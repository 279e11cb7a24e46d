"""The dispatcher on a running event loop: its clock, its timer, and the waking of those who wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from gateway.dispatch import Dispatcher
from gateway.leases import NOTHING, Effects, Lease, Outcome, Served
from gateway.pools import Pools
from gateway.probing import Prober
from gateway.refusal import Refusal
from gateway.waiting import ANYONE, Claim, Ticket


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
        self._ticker: asyncio.Handle | None = None
        self._due = 0.0
        """When the ticker fires. uvloop gives a handle without a time where that is now."""
        self._prober = Prober(dispatcher, self.carry_out)

    async def admit(
        self,
        served: Served,
        *,
        nbytes: int,
        gives_up: float,
        entered: float | None,
        wakes: bool,
        claim: Claim = ANYONE,
    ) -> Lease | Refusal:
        """`Dispatcher.admit`, and the wait where it gives a ticket; a caller that is cancelled leaves the queue."""
        dispatcher = self.dispatcher
        place = dispatcher.admit(
            served, monotonic(), nbytes=nbytes, gives_up=gives_up, entered=entered, wakes=wakes, claim=claim
        )
        if dispatcher.evicted:
            self.carry_out(dispatcher.shed())
        if isinstance(place, Lease):
            return place
        if wakes:
            self.wake_for(served)
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

    def wake_for(self, served: Served) -> None:
        """Tell the controller that a model without an endpoint is wanted, unless it knows."""
        if (name := self.dispatcher.wake(served)) is not None:
            self._wake(name)

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

    def release(self, lease: Lease, outcome: Outcome, now: float | None = None) -> None:
        """Give back a lease, and wake whom that helps."""
        effects = self.dispatcher.release(lease, outcome, monotonic() if now is None else now)
        if effects is not NOTHING:
            self.follow(effects)

    def follow(self, effects: Effects) -> None:
        """Carry out what a release led to."""
        self.carry_out(effects)
        if self.dispatcher.ailing:
            self._prober.expect()

    def _expect_tick(self) -> None:
        due = self.dispatcher.next_tick(monotonic())
        if self._ticker is not None:
            if due is not None and self._due <= due:
                return
            self._ticker.cancel()
            self._ticker = None
        if due is not None:
            self._due = due
            self._ticker = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        # A timer may fire a little early: what was due then must not be taken for not due, nor missed by the next look.
        self._ticker = None
        self.carry_out(self.dispatcher.tick(max(monotonic(), self._due)))

    def close(self) -> None:
        """Stop the clock."""
        self._prober.close()
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
