"""Hedging: a slow request is sent to a second endpoint too, and the first answer counts.

The rival is sent once, after a delay, if the whole body is at hand, the model's budget (`gateway.hedging`) allows it,
and another endpoint has room at that moment: it waits in no queue, and where others wait there is none. It goes to
another endpoint of the same side of a canary, and only to one that is in order.

The first head below 500 wins. A 5xx, or a failure, of one lets the other go on; only when both have failed is the one
or the other passed on. The loser's connection is closed, and its lease given back, at once. It is not blamed for having
been left, but an endpoint that is overtaken again and again without a word is known as silent or slow all the same.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from gateway.attempt import Attempt, Outgoing
from gateway.engine import Engine
from gateway.leases import Outcome
from gateway.wire import Hedge


class Race:
    """One attempt, and a rival if it is slow; `end` must follow `run`."""

    def __init__(self, engine: Engine, outgoing: Outgoing, first: Attempt, policy: Hedge) -> None:
        self.hedged = False
        """Whether there was a rival."""
        self._engine = engine
        self._outgoing = outgoing
        self._first = first
        self._policy = policy
        self._served = first.lease.served
        self._tasks: dict[Attempt, asyncio.Task[None]] = {}

    async def run(self) -> Attempt:
        """The attempt whose answer counts, or whose failure does."""
        delay = self._served.hedging.delay_s(self._policy)
        if delay is None:
            await self._first.run()
            winner = self._first
        else:
            await asyncio.wait((self._start(self._first),), timeout=delay)
            if not self._tasks[self._first].done():
                self._challenge()
            winner = await self._winner()
        if _answered_well(winner):
            self._served.hedging.answered(monotonic() - self._first.began)
            if winner is not self._first:
                self._served.meter.hedges_won += 1
        return winner

    def end(self) -> None:
        """Give back what is still held."""
        for attempt, task in self._tasks.items():
            if not task.done():
                task.cancel()
            elif not task.cancelled():
                task.exception()
            attempt.end()
        self._first.end()

    def _start(self, attempt: Attempt) -> asyncio.Task[None]:
        task = self._tasks[attempt] = asyncio.get_running_loop().create_task(attempt.run())
        return task

    def _challenge(self) -> None:
        """Send it to another endpoint, if that may be."""
        hedging, dispatcher = self._served.hedging, self._engine.dispatcher
        if self._first.uploading or not hedging.affordable or not self._outgoing.body.hold():
            return
        lease = dispatcher.lease_now(self._served, monotonic(), besides=self._first.lease.endpoint)
        if lease is None:
            return
        hedging.spend()
        self._served.meter.hedges += 1
        self.hedged = True
        self._start(Attempt(self._engine, self._outgoing, lease))

    async def _winner(self) -> Attempt:
        best: Attempt | None = None
        running = dict(self._tasks)
        while True:
            for attempt, task in list(running.items()):
                if not task.done():
                    continue
                del running[attempt]
                task.result()
                if _answered_well(attempt):
                    return self._leave_others(attempt)
                if attempt.answer is None:
                    attempt.end()
                # Of two that failed: any answer, else what was sent, else what came last.
                if best is None or (best.answer is None and attempt.outcome is not Outcome.UNREACHABLE):
                    best = attempt
            if not running:
                assert best is not None
                return self._leave_others(best)
            await asyncio.wait(running.values(), return_when=asyncio.FIRST_COMPLETED)

    def _leave_others(self, winner: Attempt) -> Attempt:
        for attempt, task in self._tasks.items():
            if attempt is winner:
                continue
            if not task.done():
                task.cancel()
                if attempt is self._first:
                    attempt.outcome = Outcome.OVERTAKEN
            elif attempt.answer is not None and not _answered_well(attempt):
                attempt.outcome = Outcome.ERROR
            attempt.end()
        return winner


def _answered_well(attempt: Attempt) -> bool:
    return attempt.answer is not None and attempt.answer.status_code < 500
